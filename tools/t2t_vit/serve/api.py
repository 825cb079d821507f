"""The HTTP API: POST /predict, GET /model and /health. FastAPI adds /docs, where they can be tried, and /openapi.json.

Pictures come in the body of a request and stay in memory or in temporary files without a name. Nothing in a request
names a file of this machine.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from t2t_vit import __version__
from t2t_vit.common.errors import one_line, printable
from t2t_vit.common.logger import log
from t2t_vit.deploy.open_model import OpenedModel
from t2t_vit.serve.classifier import Classifier
from t2t_vit.serve.gate import MB, Gate, Refused, length_of

MAX_UPLOAD = 64 * MB  # per request
MAX_COMING = 512 * MB  # of all requests that are under way
MAX_PICTURES = 64  # per request
UPLOAD_TIME = 60  # seconds for the body of a request
_PICTURE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"files": {"type": "array", "items": _PICTURE}}}
_BODY = {"content": {"multipart/form-data": {"schema": _FORM}, "image/*": {"schema": _PICTURE}}, "required": True}


class ApiGate(Gate):
    """Also limits the bytes of requests. Refuses in the form of FastAPI's own errors, {"detail": text}."""

    def __init__(self, app: Any, names: set[str] | None) -> None:
        super().__init__(app, names)
        self.coming = 0  # bytes of requests that are under way

    async def answer(self, request: Request, send: Any) -> None:
        size = length_of(request, MAX_UPLOAD) if request.method == "POST" else 0
        if size and size + self.coming > MAX_COMING:
            raise Refused(503, "too many pictures are under way: try again")
        self.coming += size
        try:
            await super().answer(request, send)
        finally:
            self.coming -= size

    def refusal(self, status: int, text: str) -> JSONResponse:
        return JSONResponse({"detail": text}, status, {"connection": "close"})


def build_api(opened: OpenedModel, classify: Classifier, names: set[str] | None) -> ApiGate:
    """Build the ASGI application for a model. For `names` see `Gate`."""
    app = FastAPI(
        title="T2T-ViT and PiT",
        version=__version__,
        description=f"Classifies pictures with {opened.cfg.MODEL.NAME}.",
        redoc_url=None,
    )

    @app.post("/predict", summary="Classify pictures", openapi_extra={"requestBody": _BODY})
    async def predict(request: Request, top_k: Annotated[int, Query(ge=1)] = 5) -> JSONResponse:
        """Send up to 64 files as multipart/form-data, or one picture as the body.

        The answer has a result for each, in their order. Its status is 422 if none of them can be read.
        """
        pictures = await pictures_of(request)
        try:
            results = await asyncio.gather(*(classify(name, data, top_k) for name, data in pictures))
        except Exception as error:  # engines raise any kind, with paths of this machine
            log.error("error: %s", one_line(error))
            raise HTTPException(500, "the model failed: the server's log says why") from None
        return JSONResponse({"results": results}, 422 if all("error" in result for result in results) else 200)

    @app.get("/model", summary="Describe the model")
    async def model() -> dict[str, Any]:
        metadata = opened.predictor.metadata
        described = {name: getattr(metadata, name) for name in ("model", "data", "precision", "channels", "classes")}
        return {**described, "image_size": metadata.image_size[0], "batch_size": classify.batches.size}

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/health", summary="Whether the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return ApiGate(app, names)


async def pictures_of(request: Request) -> list[tuple[str, bytes]]:
    """Return (name, contents) of the pictures of a request. Raises HTTPException if there are none or too many."""
    try:
        pictures = await asyncio.wait_for(_read(request), UPLOAD_TIME)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the pictures did not arrive within {UPLOAD_TIME} seconds") from None
    except (ClientDisconnect, ValueError, LookupError) as error:
        raise HTTPException(400, f"the form cannot be read: {one_line(error)}") from None
    if not pictures:
        raise HTTPException(422, "no picture: send files as multipart/form-data, or one picture as the body")
    return pictures


async def _read(request):
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        data = await request.body()
        return [("body", data)] if data else []
    async with request.form(max_files=MAX_PICTURES, max_fields=MAX_PICTURES) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [(printable(file.filename or "file"), await file.read()) for file in files]
