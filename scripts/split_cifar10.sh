#!/usr/bin/env bash
# Split CIFAR-10 for transfer learning to new classes: bash scripts/split_cifar10.sh /path/to/cifar10 /path/to/parts
# parts/seven/{train,test}/ gets all images of seven classes, for pretraining. parts/three/{train,test}/ gets the other
# three classes, with 50 training images each (the first by name) and all test images. The script only creates links, so it
# is safe to repeat.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by sh
set -euo pipefail
export LC_ALL=C # the order of the names

SEVEN=(airplane automobile bird cat deer dog frog)
THREE=(horse ship truck)
FEW=50

fail() {
  echo "error: $*" >&2
  exit 1
}

link_folder() { # link_folder FOLDER LINK
  [[ -L $2 || ! -e $2 ]] || fail "$2 exists and is not a link; give another folder for the parts"
  mkdir -p "$(dirname -- "$2")"
  ln -sfn "$1" "$2"
}

link_few() { # link_few FOLDER NEW_FOLDER: the first $FEW images of FOLDER
  [[ ! -L $2 ]] || fail "$2 is a link; give another folder for the parts"
  local images=("$1"/*)
  [[ -e ${images[0]} ]] || fail "$1 is empty"
  mkdir -p "$2"
  find "$2" -maxdepth 1 -type l -delete # links of an earlier run
  ln -s "${images[@]:0:FEW}" "$2/"
}

[[ $# -eq 2 ]] || { echo "usage: bash scripts/split_cifar10.sh /path/to/cifar10 /path/to/parts" >&2; exit 2; }
[[ -d $1 ]] || fail "$1 is not a folder; give the folder of CIFAR-10, with train/ and test/"
cifar=$(cd -- "$1" && pwd)
for split in train test; do
  for class in "${SEVEN[@]}" "${THREE[@]}"; do
    [[ -d $cifar/$split/$class ]] || fail "$cifar has no $split/$class; give the folder of CIFAR-10, with train/ and test/"
  done
done
mkdir -p -- "$2"
parts=$(cd -- "$2" && pwd)
for class in "${SEVEN[@]}"; do
  link_folder "$cifar/train/$class" "$parts/seven/train/$class"
  link_folder "$cifar/test/$class" "$parts/seven/test/$class"
done
for class in "${THREE[@]}"; do
  link_few "$cifar/train/$class" "$parts/three/train/$class"
  link_folder "$cifar/test/$class" "$parts/three/test/$class"
done
for part in seven three; do
  for split in train test; do
    echo "$parts/$part/$split: $(find -L "$parts/$part/$split" -type f | wc -l) images in $(ls "$parts/$part/$split" | wc -l) classes"
  done
done
