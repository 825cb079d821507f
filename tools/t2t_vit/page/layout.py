"""The components of the page and their events."""

import re

import gradio as gr

from t2t_vit.common.errors import UserError
from t2t_vit.data.classes import some
from t2t_vit.data.images import to_image
from t2t_vit.explain.overlay import enlarged
from t2t_vit.page.shelf import METHODS, attention, class_names, examples

MAX_PICTURES = 32  # classified at a time
MAX_WAITING = 64  # queued events of all visitors; when the queue is full, the page asks to try again
# If the likeliest class has less, the others together are likelier. Of CIFAR-10's test images, 26% are below and 42% of
# those are classified correctly, against 83% of the rest (cifar10_augment). Of digits, which it does not know, 47% are.
LIKELY = 0.5
LABELS = {"gradient": "gradient 梯度", "rollout": "rollout 逐层累积", "last block": "last block 最后一块"}
HEADING = "## T2T-ViT and PiT: try a model 在线体验"
# CSS classes of Gradio, the same from 4.44 to 6. If they change, only the look of the page suffers.
STYLE = """<style>
footer, button[aria-label="Share"], .grid-wrap .icon-button-wrapper { display: none !important; }
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.gradio-container, .gradio-container * { font-family: system-ui, "Noto Sans CJK SC", "PingFang SC", sans-serif; }
#examples img, #answers img { image-rendering: pixelated; }
.grid-wrap { padding-top: 34px !important; height: auto !important; overflow: hidden !important; }
.grid-wrap { min-height: 0 !important; max-height: none !important; }
.grid-container { grid-template: none / repeat(5, minmax(0, 1fr)) !important; grid-auto-rows: auto !important; }
.thumbnail-lg { min-width: 0 !important; width: 100%; height: auto !important; aspect-ratio: auto !important; }
.thumbnail-lg > img { height: auto !important; aspect-ratio: 1; }
.caption-label { position: static !important; max-width: 100% !important; padding: 2px !important; }
.caption-label { white-space: normal !important; overflow-wrap: anywhere; opacity: 1 !important; }
@media (max-width: 640px) {
#answers .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
#original .icon-button-wrapper, #attention .icon-button-wrapper { display: none !important; }
.gradio-container .fillable, .gradio-container > .main { padding: 12px !important; }
#model input, #method input { font-size: 14px !important; }
}
</style>"""
GALLERY = {
    "columns": 5, "height": "auto", "object_fit": "contain", "allow_preview": False, "interactive": False,
    "format": "png",
}  # fmt: skip


def build_page(shelf):
    """Build the page of a `Shelf` as a `gradio.Blocks`. The first model is selected initially."""
    with gr.Blocks(title="T2T-ViT", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(STYLE)
        gr.Markdown(HEADING)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                models = [(label, name) for name, label in shelf.labels.items()]
                label = "Model · data · val top-1 模型 · 数据 · 验证精度"
                model = gr.Dropdown(models, value=shelf.names[0], label=label, elem_id="model")
                files = gr.File(file_count="multiple", label="Pictures 图片", height=140, elem_id="files")
                tiles = _tiles(shelf.ask(shelf.names[0], examples))
                samples = gr.Gallery(tiles, visible=bool(tiles), label="Examples 示例", elem_id="examples", **GALLERY)
            with gr.Column(scale=3, min_width=320):
                notes = gr.Textbox(visible=False, label="Notes 提示", interactive=False, elem_id="notes")
                with gr.Row():
                    choices, narrow = [(LABELS[name], name) for name in METHODS], {"min_width": 140}
                    method = gr.Dropdown(choices, value=METHODS[0], label="Method 方法", elem_id="method", **narrow)
                    target = gr.Dropdown([], label="Class 类别", elem_id="class", **narrow)
                with gr.Row():
                    shown = {"interactive": False, "height": 220, **narrow}
                    original = gr.Image(label="Picture 图片", elem_id="original", **shown)
                    image = gr.Image(label="Attention 注意力", elem_id="attention", **shown)
                    bars = gr.Label(label="Top 5 前 5 类", min_width=180, elem_id="top")
                gallery = gr.Gallery(label="Answers (pick one) 结果（点击查看）", elem_id="answers", **GALLERY)
        paths, answers, chosen = gr.State([]), gr.State([]), gr.State(0)  # chosen: index of the selected answer
        picture = [original, bars, target, image, notes]
        results = [paths, answers, chosen, gallery, *picture]
        act = Actions(shelf)
        files.upload(act.answer, [model, files, method], results)
        files.delete(act.answer, [model, files, method], results)  # one of several
        files.clear(lambda: cleared(), None, results)
        samples.select(act.answer_example, [model, method], [*results, files])
        model.change(act.change_model, [model, paths, method], [*results, samples])
        gallery.select(act.choose, [answers, method], [chosen, *picture])
        for control in (method, target):
            control.input(act.draw, [answers, chosen, method, target], [image, notes])
    return page.queue(max_size=MAX_WAITING, api_open=False)


class Actions:
    """The event handlers of the page. They map values of components to values of components."""

    def __init__(self, shelf):
        self.shelf = shelf

    def answer(self, model, paths, method):
        """Classify the pictures and draw the attention of the first one."""
        paths = list(paths or [])
        lines = [f"only the first {MAX_PICTURES} of {len(paths)} pictures are shown"] * (len(paths) > MAX_PICTURES)
        paths = paths[:MAX_PICTURES]
        try:
            answers, errors = self.shelf.look(model, paths)
        except UserError as error:
            answers, errors = [], [str(error)]
        lines += errors
        if not answers:
            return cleared(paths, lines)
        tiles = [(enlarged(to_image(answer.pixels)), _caption(answer)) for answer in answers]
        return [paths, answers, 0, gr.update(value=tiles, selected_index=0), *self._picture(answers[0], method, lines)]

    def answer_example(self, model, method, event: gr.SelectData):
        path = list(self.shelf.ask(model, examples))[event.index]
        return [*self.answer(model, [path], method), None]

    def change_model(self, model, paths, method):
        try:
            tiles = _tiles(self.shelf.ask(model, examples))
        except UserError:  # `answer` reports it
            tiles = []
        return [*self.answer(model, paths, method), gr.update(value=tiles, visible=bool(tiles))]

    def choose(self, answers, method, event: gr.SelectData):
        return [event.index, *self._picture(answers[event.index], method, [])]

    def draw(self, answers, chosen, method, target):
        """Return (attention over the selected picture, note)."""
        if not answers:
            return None, _note([])
        answer = answers[chosen]  # its model may differ from the one that is selected now
        image, lines = self._attention(answer, method, target if target in answer.top else next(iter(answer.top)))
        return image, _note(lines)

    def _picture(self, answer, method, lines):
        """Return [picture, bars, classes to choose from, attention, note] for an answer."""
        classes = list(answer.top)
        image, errors = self._attention(answer, method, classes[0])
        if answer.top[classes[0]] < LIKELY:
            known = some(self.shelf.ask(answer.model, class_names), 10)
            lines = [*lines, f"no class reaches {LIKELY:.0%}: is this the model's kind of picture? It knows {known}"]
        target, note = gr.update(choices=classes, value=classes[0]), _note([*lines, *errors])
        return [enlarged(to_image(answer.pixels)), answer.top, target, image, note]

    def _attention(self, answer, method, name):
        """Return (picture or None, lines that say why there is none)."""
        try:
            return self.shelf.ask(answer.model, attention, answer.pixels, method, name), []
        except UserError as error:
            return None, [str(error)]


def cleared(paths=(), lines=()):
    """Return the values of the result components if there is nothing to show."""
    return [list(paths), [], 0, [], None, None, gr.update(choices=[], value=None), None, _note(lines)]


def _note(lines):
    # Show only file names. Full paths would reveal the folders of this machine to visitors.
    lines = [re.sub(r"(?<![\w:/.])/(?:[^\s/]+/)+", "", line) for line in lines]
    return gr.update(value="\n".join(lines), visible=bool(lines), lines=max(1, len(lines)))


def _caption(answer):
    name, probability = next(iter(answer.top.items()))
    return f"{probability:.0%} {name}"


def _tiles(found):
    return [enlarged(to_image(pixels)) for pixels in found.values()]
