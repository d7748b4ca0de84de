"""lm-eval (Gao et al., the Language Model Evaluation Harness) as it asks a diffusion model, or its AR parent, by name:

    lm_eval --model diffulm --model_args pretrained=runs/mine --tasks hellaswag
    lm_eval --model diffulm --model_args pretrained=gpt2,parent=true --tasks hellaswag

Log-likelihoods are those of `diffulm.scoring`, documents are read as in `rolling`, texts written by `Subject.complete`.
"""

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import fields
from typing import Any, cast, get_args

import torch

from diffulm import randomness, scoring
from diffulm.canvas import encode
from diffulm.errors import BadInput, unknown
from diffulm.evaluation import rolling
from diffulm.evaluation.choices import method_for
from diffulm.evaluation.journal import Journal
from diffulm.evaluation.subject import Subject, opened
from diffulm.scoring import Method, Request, Scored

try:
    import lm_eval.models  # noqa: F401  (its own models: it would not register them once another is there)
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.evaluator import simple_evaluate  # noqa: F401
    from lm_eval.tasks import TaskManager  # noqa: F401
except ImportError:
    raise BadInput("lm-eval is not installed, and tasks by name need it; pip install 'diffulm[eval]'") from None

LENGTH = 256  # tokens of an answer where a task does not say, as in lm-eval
LONGEST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DTYPES = ("float32", "bfloat16", "float16")


class DiffuLM(LM):
    """What lm-eval asks for. Log-likelihoods are `diffulm.scoring`'s; choices of one question share their random numbers.

    pretrained: whatever `diffulm.load` opens; with parent=true an AR model, asked the same with the same tokens. method: None
    takes for each task what costs fewer forwards of left_to_right (exact) and bound (`draws` each). steps and temperature:
    of generated text, by default one token a forward and what a task says. end: a document is scored with its EOS.
    BadInput for arguments that are none.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        parent: bool | str = False,
        method: str | None = None,
        draws: int = 32,
        steps: int | None = None,
        temperature: float | None = None,
        seed: int = 0,
        dtype: str | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        device: str | None = None,
        mask_token_id: int | None = None,
        subject: Subject | None = None,
        journal: Journal | None = None,
        end: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        for name in others:
            raise unknown("model argument", name, ("pretrained", "parent", "method", "draws", "steps", "temperature"))
        if method is not None and method not in get_args(Method):
            raise unknown("method", str(method), get_args(Method))
        if dtype is not None and dtype not in DTYPES:
            raise unknown("dtype", str(dtype), DTYPES)
        if subject is None:
            if pretrained is None:
                raise BadInput("which model? give --model_args pretrained=FOLDER")
            precision = None if dtype is None else getattr(torch, dtype)
            subject = opened(pretrained, mask_token_id, precision, parent=str(parent).lower() in ("true", "1"))
        # lm-eval's command asks for cuda:0 whether there is one or not
        if device and (torch.cuda.is_available() or not str(device).startswith("cuda")):
            subject.lm.model.to(device)
        self.subject, self.draws, self.seed = subject, draws, seed
        self.method: Method | None = cast(Any, method)
        self.steps, self.temperature, self.end = steps, temperature, end
        self.batch_size = batch_size if isinstance(batch_size, int) else int(batch_size) if batch_size.isdigit() else 16
        self.journal = journal or Journal(progress=_logged)
        self.screen = sys.stderr
        """Where progress is drawn while lm-eval's own is not."""
        self.templated = False
        self.methods: dict[str, str] = {}
        """By task: how its likelihoods were computed."""
        self.scored: dict[tuple[Any, Any], list[dict[str, Any]]] = defaultdict(list)
        """By (task, document): `Scored` of each request, beside what of its context was cut and why it could not be asked."""

    @property
    def tokenizer(self) -> Any:
        return self.subject.tokenizer

    @property
    def max_length(self) -> int:
        return self.subject.context

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        self.templated = True  # lm-eval names the tokenizer where it applies templates, and there alone
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if not chat_template:
            return None
        if not self.tokenizer.chat_template:
            raise BadInput(f"{self.subject.name}: its tokenizer has no chat template; leave --apply_chat_template out")
        return self.tokenizer.get_chat_template(chat_template if isinstance(chat_template, str) else None)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        self.chat_template(True)
        self.templated = True
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval puts into its results beside the settings it knows."""
        model = self.subject.lm.model
        return {
            "model": "diffulm",
            "model_args": {"pretrained": self.subject.name, "parent": self.subject.autoregressive},
            "model_num_parameters": sum(one.numel() for one in model.parameters()),
            "model_dtype": str(next(model.parameters()).dtype),
            "method": self.methods,
            "draws": self.draws,
            "steps": self.steps,
            "diffulm_seed": self.seed,
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p, whether every token is the likeliest in its place) of each continuation; what cannot be asked, because it
        adds no token or is longer than the window, is (-inf, False), and counted."""
        by_task: dict[str, list[int]] = defaultdict(list)
        for i, one in enumerate(requests):
            by_task[str(one.task_name)].append(i)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for task, places in by_task.items():
            own = [requests[i] for i in places]
            results = self._likelihoods(task, own)
            for i, one, result in zip(places, own, results, strict=True):
                self.scored[one.task_name, one.doc_id].append(result)
                found[i] = (float("-inf"), False) if result["why"] else (-result["nats"], bool(result["greedy"]))
                self.cache_hook.add_partial("loglikelihood", one.args, found[i])
        return found

    def _likelihoods(self, task: str, requests: list[Instance]) -> list[dict[str, Any]]:
        items = [(*_arguments(one), _key(one)) for one in requests]
        texts = [text for _, text, _ in items]
        method = self.methods[task] = method_for(self.subject, texts, self.draws, self.method)
        results = self._mapped(items, method)
        if method in ("left_to_right", "autoregressive"):
            return results
        # A bound does not say what is likeliest. A question of one text (the last word of LAMBADA) is asked for that.
        count = Counter(key for _, _, key in items)
        alone = [i for i, (_, _, key) in enumerate(items) if count[key] == 1]
        exact = self._mapped([items[i] for i in alone], "left_to_right")
        for i, one in zip(alone, exact, strict=True):
            results[i] |= {"greedy": one["greedy"]}
        return results

    def _mapped(self, items: list[tuple[str, str, int]], method: Method) -> list[dict[str, Any]]:
        how = {"draws": self.draws, "seed": self.seed, "templated": self.templated}
        name = f"log-likelihood of {self.subject.name}, {method}, {how}"
        return self._map(name, items, lambda group: self._asked(group, method), together=256)

    def _map(self, name: str, items: list[Any], run: Callable[[list[Any]], list[Any]], together: int) -> list[Any]:
        with redirect_stderr(self.screen):
            return self.journal.map(name, items, run, together)

    def _asked(self, group: list[tuple[str, str, int]], method: Method) -> list[dict[str, Any]]:
        made = [self._request(*one) for one in group]
        found = iter(
            scoring.scores(self.subject.denoiser, [one for one, _ in made if one], method, self.draws, self.seed)
        )
        results = []
        for (request, cut), (_, text, _) in zip(made, group, strict=True):
            why = "" if request else "beyond the context" if cut and encode(self.tokenizer, text) else "answers empty"
            results.append(_plain(next(found)) if request else dict.fromkeys(_NAMES))
            results[-1] |= {"cut": cut if request else 0, "why": why}
        return results

    def _request(self, context: str, text: str, key: int) -> tuple[Request | None, int]:
        bos, limit = self.subject.bos, self.subject.context
        if not (self.templated and context):
            found, cut = scoring.encoded(self.tokenizer, bos, context, text, limit=limit)
        else:
            before, own = self._prompt(context), encode(self.tokenizer, text, inside=True)
            cut = max(0, len(bos) + len(before) + len(own) - limit)
            kept = before[cut:]
            start = len(bos) + len(kept)
            fits = own and cut <= len(before)
            found = Request((*bos, *kept, *own), start, start + len(own)) if fits else None
        if found is not None and found.start < (1 if self.subject.lm.record.shift else 0):
            return None, cut  # without BOS the first token has nothing that it could be predicted from
        return found and Request(found.ids, found.start, found.stop, key), cut

    def _prompt(self, context: str) -> list[int]:
        """The ids of a chat template's text: its special tokens are meant; BOS, if it has one, is put there by others."""
        ids = self.tokenizer.encode(context, add_special_tokens=False)
        return ids[1:] if ids[:1] == self.subject.bos else ids

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, window by window; by default, and where it is drawn, minus an upper bound on -log p."""
        method = "autoregressive" if self.subject.autoregressive else self.method or "bound"
        how = {"method": method, "draws": self.draws, "seed": self.seed, "end": self.end}
        results = self._map(
            f"documents of {self.subject.name}, {how}",
            [(f"{one.task_name} {one.doc_id}", one.args[0]) for one in requests],
            lambda group: [one and vars(one) for one in rolling.documents(self.subject, group, **how)],
            together=16,
        )
        found = []
        for one, result in zip(requests, results, strict=True):
            self.methods[str(one.task_name)] = method
            self.scored[one.task_name, one.doc_id].append({"why": ""} | result if result else {"why": "texts empty"})
            found.append(-result["nats"] if result else 0.0)  # of no token nothing is to be predicted
            self.cache_hook.add_partial("loglikelihood_rolling", one.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A text for each request; a request that comes several times (`repeats`) gets as many draws."""
        asked: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, one in enumerate(requests):
            context, settings = _arguments(one)
            asked[*self._how(settings), one.task_name, one.doc_id, context].append(i)
        alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for wanted, places in asked.items():
            alike[*wanted[:3], len(places)].append(wanted)
        found = [""] * len(requests)
        for (length, stop, temperature, count), questions in alike.items():
            how: dict[str, Any] = {"length": length, "stop": stop, "temperature": temperature, "draws": count}
            how |= {"steps": self.steps, "seed": self.seed}
            results = self._map(
                f"texts of {self.subject.name}, {how}, {self.subject.autoregressive, self.templated}",
                [(one[5], f"{one[3]} {one[4]}") for one in questions],
                lambda group, how=how: self._texts(group, how),
                together=64,
            )
            for wanted, result in zip(questions, results, strict=True):
                self.scored[wanted[3], wanted[4]].append({"why": "", "cut": result["cut"]})
                for i, text in zip(asked[wanted], result["texts"], strict=True):
                    found[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return found

    def _texts(self, group: list[tuple[str, str]], how: dict[str, Any]) -> list[dict[str, Any]]:
        prompts = [self._prompt(context) if self.templated else context for context, _ in group]
        keys = [key for _, key in group]
        done = self.subject.complete(prompts, keys=keys, batch_size=self.batch_size, **how)
        return [{"texts": [one.text for one in of], "cut": of[0].cut} for of in done]

    def _how(self, settings: dict[str, Any]) -> tuple[int, tuple[str, ...], float]:
        """(most tokens, what ends a text, temperature) of lm-eval's settings: tokens never more than half the window."""
        length = next((int(settings[name]) for name in LONGEST if settings.get(name) is not None), LENGTH)
        until = settings.get("until") or []
        drawn = settings.get("do_sample")
        temperature = float(settings.get("temperature", 1.0 if drawn else 0.0)) if drawn is not False else 0.0
        if self.temperature is not None:
            temperature = self.temperature
        stop = (until,) if isinstance(until, str) else tuple(one for one in until if one)
        return max(1, min(length, self.subject.context // 2)), stop, temperature


register_model("diffulm")(DiffuLM)

_NAMES = tuple(one.name for one in fields(Scored))


def _plain(scored: Scored) -> dict[str, Any]:
    return {name: getattr(scored, name) for name in _NAMES}


def _arguments(request: Instance) -> Any:
    return request.args


def _key(request: Instance) -> int:
    """Of a document, so that its choices share it; of the context where lm-eval does not say which document it is."""
    if request.doc_id is None:
        return randomness.key(request.args[0])
    return randomness.key(str(request.task_name), request.doc_id)


def _logged(what: str, done: int, of: int) -> None:
    logging.getLogger("lm_eval").info("%s: %d of %d", what, done, of)
