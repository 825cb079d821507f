"""What the page shows, and what happens when something on it is touched."""

import re

import gradio as gr

from t2t_vit.common.errors import UserError
from t2t_vit.data.images import load_image, to_image
from t2t_vit.explain.overlay import enlarged
from t2t_vit.page.shelf import METHODS, attention, examples, look
from t2t_vit.pictures.sheet import fitted

MOST_PICTURES = 32  # looked at together
MOST_WAITING = 64  # events of all visitors; who comes then is asked to try again
LABELS = {
    "gradient": "gradient 梯度",
    "rollout": "rollout 逐层累积",
    "last block": "last block 最后一层",
}
HEADING = """# T2T-ViT and PiT: try a model
Drop pictures, pick a model: it answers with its likeliest classes and shows where it looks.<br>
拖入图片,选择模型:页面给出最可能的类别,并显示模型所看之处。"""
# Class names of Gradio's, the same from 4.44 to 6; where they change, only the looks do.
STYLE = """<style>
footer, button[aria-label="Share"] { display: none !important; }
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.gradio-container, .gradio-container * { font-family: system-ui, "Noto Sans CJK SC", "PingFang SC", sans-serif; }
#examples img, #answers img { image-rendering: pixelated; }
.grid-wrap { padding-top: 34px !important; min-height: 0 !important; max-height: none !important; }
.grid-wrap { height: auto !important; overflow: hidden !important; }
.grid-container { grid-template: none / repeat(5, minmax(0, 1fr)) !important; grid-auto-rows: auto !important; }
.thumbnail-lg { min-width: 0 !important; width: 100%; height: auto !important; aspect-ratio: 1; }
.caption-label { max-width: 100% !important; left: auto !important; right: 0; padding: 2px 6px !important; }
.grid-wrap .icon-button-wrapper { display: none; }
</style>"""


def build_page(shelf):
    """The page, a `gradio.Blocks`, of a `Shelf` whose first model is the one that is picked at first."""
    with gr.Blocks(title="T2T-ViT", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(STYLE)
        gr.Markdown(HEADING)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                model = gr.Dropdown(shelf.names, value=shelf.names[0], label="Model 模型", elem_id="model")
                files = gr.File(file_count="multiple", label="Pictures 图片", height=140, elem_id="files")
                shown = shelf.ask(shelf.names[0], examples)
                samples = gr.Gallery(_tiles(shown), visible=bool(shown), **_gallery("Examples 示例", "examples"))
            with gr.Column(scale=3, min_width=320):
                notes = gr.Textbox(visible=False, label="Please note 请注意", interactive=False, elem_id="notes")
                gallery = gr.Gallery(**_gallery("Answers (touch one) 结果(点选)", "answers"))
                with gr.Row():
                    bars = gr.Label(label="Top 5 前五类", elem_id="top")
                    image = gr.Image(label="Attention 注意力", interactive=False, height=290, elem_id="attention")
                with gr.Row():
                    choices = [(LABELS[name], name) for name in METHODS]
                    method = gr.Radio(choices, value=METHODS[0], label="How 方法", scale=3, elem_id="method")
                    target = gr.Dropdown([], label="Of the class 类别", scale=1, min_width=120, elem_id="class")
        paths, answers, chosen, offered = gr.State([]), gr.State([]), gr.State(0), gr.State(shown)
        picture = [bars, target, image, notes]
        results = [paths, answers, chosen, gallery, *picture]
        act = Actions(shelf)
        files.upload(act.answer, [model, files, method], results)
        files.delete(act.answer, [model, files, method], results)  # one of several
        files.clear(lambda: cleared(), None, results)
        samples.select(act.answer_example, [model, offered, method], [*results, files])
        model.change(act.change_model, [model, paths, method], [*results, samples, offered])
        gallery.select(act.choose, [answers, method], [chosen, *picture])
        for control in (method, target):
            control.input(act.draw, [answers, chosen, method, target], [image, notes])
    return page.queue(max_size=MOST_WAITING, api_open=False)


class Actions:
    """What the events of the page call; values of its parts in, values of its parts out."""

    def __init__(self, shelf):
        self.shelf = shelf

    def answer(self, model, paths, method):
        """Look at pictures, and draw the first one's attention."""
        paths = list(paths or [])
        lines = []
        if len(paths) > MOST_PICTURES:
            lines = [f"only the first {MOST_PICTURES} of {len(paths)} pictures are shown"]
            paths = paths[:MOST_PICTURES]
        try:
            answers, errors = self.shelf.ask(model, look, paths)
        except UserError as error:
            return [paths, *cleared(str(error))[1:]]
        if not answers:
            return [paths, *cleared("\n".join(lines + errors))[1:]]
        tiles = [(enlarged(to_image(answer.pixels)), _caption(answer)) for answer in answers]
        bars, target, image, notes = self._picture(answers[0], method, lines + errors)
        return [paths, answers, 0, gr.update(value=tiles, selected_index=0), bars, target, image, notes]

    def answer_example(self, model, offered, method, event: gr.SelectData):
        return [*self.answer(model, [offered[event.index]], method), None]

    def change_model(self, model, paths, method):
        try:
            shown = self.shelf.ask(model, examples)
        except UserError:  # which `answer` tells
            shown = []
        return [*self.answer(model, paths, method), gr.update(value=_tiles(shown), visible=bool(shown)), shown]

    def choose(self, answers, method, event: gr.SelectData):
        return [event.index, *self._picture(answers[event.index], method, [])]

    def draw(self, answers, chosen, method, target):
        """(attention over the chosen picture, note)."""
        if not answers:
            return None, _note([])
        try:
            answer = answers[chosen]  # maybe of another model than is picked by now, as its class may be
            target = target if target in answer.top else next(iter(answer.top))
            return self.shelf.ask(answer.model, attention, answer.pixels, method, target), _note([])
        except UserError as error:
            return None, _note([str(error)])

    def _picture(self, answer, method, lines):
        """[bars, classes to choose from, attention, note] of one picture."""
        classes = list(answer.top)
        try:
            image = self.shelf.ask(answer.model, attention, answer.pixels, method, classes[0])
        except UserError as error:
            image, lines = None, [*lines, str(error)]
        return [answer.top, gr.update(choices=classes, value=classes[0]), image, _note(lines)]


def cleared(note=""):
    """Values of the results where there is nothing to show."""
    return [[], [], 0, [], None, gr.update(choices=[], value=None), None, _note([note] if note else [])]


def _note(lines):
    # File names in place of whole paths, which show a visitor the machine's folders.
    lines = [re.sub(r"(?<![\w:/.])/(?:[^\s/]+/)+", "", line) for line in lines]
    return gr.update(value="\n".join(lines), visible=bool(lines), lines=max(1, len(lines)))


def _caption(answer):
    name, probability = next(iter(answer.top.items()))
    return f"{probability:.0%} {name}"  # names may be long, and are cut


def _tiles(paths):
    return [fitted(load_image(path, upright=True)) for path in paths]


def _gallery(label, name):
    return {
        "label": label, "columns": 5, "height": "auto", "object_fit": "contain", "allow_preview": False,
        "interactive": False, "format": "png", "elem_id": name,
    }  # fmt: skip
