"""python wait_and_download.py URL: print "ready", wait for a line on stdin, download the URL, print its local path."""

import sys

from t2t_vit.weights.download import download

print("ready", flush=True)
sys.stdin.readline()
print(download(sys.argv[1]))
