"""Rules over the keys of methods that learn from their own answers; see `posttrain.runs.rules`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from posttrain.errors import Problem
from posttrain.runs.options import config_dir
from posttrain.runs.signatures import read_signature
from posttrain.runs.source import class_constant

Config = dict[str, Any]
CHOICE = "posttrain.rewards.matching.Choice"
COMPARING = ("group", "leave_one_out", "decoupled", "pass_at_k")  # of posttrain.functional.advantages


def sampling_fits_method(config: Config) -> Iterator[Problem]:
    """Methods that learn from their own answers need a generator and a reward; the others have no use for them."""
    name = config["method"].get("name")
    online = class_constant(config["method"].get("_target_", ""), "online") is True
    for key, what in (("rollout", "how answers are sampled"), ("reward", "what they are worth")):
        if online and not config[key]:
            yield Problem(key, f"method={name} needs to know {what}", f"posttrain list {key}")
        if not online and config[key]:
            yield Problem(key, f"method={name} samples no answers, so it has no use for this", f"leave {key} out, or method=grpo")
    if "pairs" in config["method"] and (config["rollout"] or {}).get("group_size", 2) < 2:
        yield Problem("rollout.group_size", "a pair takes two answers to a prompt", "rollout.group_size=2")
    if online and config["rollout"] and not config["rollout"].get("temperature"):
        yield Problem(
            "rollout.temperature", "at 0 all answers to a prompt are the same, and nothing can be learnt", "rollout.temperature=1"
        )


def judges_have_backends(config: Config) -> Iterator[Problem]:
    """A judge's backend is an option of a group of its own, which a value cannot stand for."""
    for name, node in (config["reward"] or {}).items():
        backend = node.get("backend") if isinstance(node, dict) else None
        if backend is not None and not (isinstance(backend, dict) and "_target_" in backend):
            yield Problem(
                f"reward.{name}.backend", f"expected an option of a group, got {backend!r}", "reward/backend=openai, local, scripted"
            )


def rollout_is_known(config: Config) -> Iterator[Problem]:
    """What the loss must know of the rollout follows it; a value of its own would be another policy's, or another length's."""
    for key, source in (("temperature", "temperature"), ("longest", "max_new_tokens")):
        known, true = config["method"].get(key), (config["rollout"] or {}).get(source)
        if known is not None and true is not None and known != true:
            message = f"is {known}, and answers are sampled with rollout.{source}={true}, which it follows"
            yield Problem(f"method.{key}", message, f"leave it out; set rollout.{source}")


def answers_fit(config: Config) -> Iterator[Problem]:
    """Held-out prompts are answered as the others are; and an answer leaves room for a prompt, as far as the architecture is known here."""
    rollout, exact_match = config["rollout"] or {}, config["evaluation"].get("exact_match") or {}
    longest, wanted = rollout.get("max_new_tokens"), exact_match.get("max_new_tokens")
    if longest is not None and wanted is not None and wanted != longest:
        message = f"is {wanted}, and answers have at most rollout.max_new_tokens={longest} tokens, those to held-out prompts too"
        yield Problem("evaluation.exact_match.max_new_tokens", message, "leave it out; set rollout.max_new_tokens")
    positions = (config["model"]["architecture"] or {}).get("max_position_embeddings") if config["model"]["weights"] == "random" else None
    if isinstance(positions, int) and isinstance(longest, int) and longest >= positions:
        yield Problem(
            "rollout.max_new_tokens", f"an answer of {longest} tokens leaves no prompt in the model's {positions} positions", "lower it"
        )


def references_are_asked(config: Config) -> Iterator[Problem]:
    """Without a pull nothing asks the reference that is to move."""
    method = config["method"]
    kl = method.get("kl")
    if isinstance(kl, dict) and not kl.get("coef") and method.get("reference_update_every") is not None:
        message = "there is no pull towards a reference, so there is none to move"
        yield Problem("method.reference_update_every", message, "method.kl.coef=0.05, or leave it out")


def advantages_have_groups(config: Config) -> Iterator[Problem]:
    """An advantage that compares answers needs several to a prompt; one of sets of k, as many."""
    advantage, rollout = config["method"].get("advantage"), config["rollout"]
    if not isinstance(advantage, dict) or not rollout:
        return
    size = rollout.get("group_size", 0)
    if size == 1 and _compares(advantage):
        message = "with one answer to a prompt there is nothing that this advantage could compare, and nothing is learnt"
        yield Problem("rollout.group_size", message, "rollout.group_size=8, or method=reinforce, or method.advantage=raw")
        return
    if advantage.get("k", 0) > size:
        message = f"sets of {advantage['k']} answers need as many to a prompt, and rollout.group_size is {size}"
        yield Problem("method.advantage.k", message, f"method.advantage.k={size}, or rollout.group_size={advantage['k']}")


def _compares(advantage: Config) -> bool:
    """Whether it is 0 for the only answer of a group."""
    package, _, name = str(advantage.get("_target_")).rpartition(".")
    return package == "posttrain.functional.advantages" and (name in COMPARING or bool(advantage.get("baseline")))


def comparisons_have_groups(config: Config) -> Iterator[Problem]:
    """A reward that compares the answers to a prompt can score none of them alone."""
    if (config["rollout"] or {}).get("group_size") != 1:
        return
    for name, node in (config["reward"] or {}).items():
        if isinstance(node, dict) and class_constant(str(node.get("_target_")), "compares") is True:
            message = "compares the answers to a prompt, and rollout.group_size=1 leaves each without another"
            yield Problem(f"reward.{name}", message, "rollout.group_size=8, or another reward")


def options_have_effect(config: Config) -> Iterator[Problem]:
    """Options that another one leaves without effect, where they are not at their default."""
    method = config["method"]
    kl = method.get("kl") or {}
    if kl.get("unbiased") and kl.get("place") == "reward":
        message = "weighs the estimate in the loss, and with method.kl.place=reward it is taken off the reward"
        yield Problem("method.kl.unbiased", message, "method.kl.place=loss, or leave it out")
    if _is_set(method, "kl_rate") and method.get("kl_target") is None:
        message = "is of no use: without method.kl_target the pull stays as it is"
        yield Problem("method.kl_rate", message, "set method.kl_target=NATS, or leave it out")
    if _is_set(method, "selection_tries") and method.get("selection") != "resample":
        message = f"is of no use: with method.selection={method.get('selection')} no other prompts are asked"
        yield Problem("method.selection_tries", message, "method.selection=resample, or leave it out")


def pulls_pull(config: Config) -> Iterator[Problem]:
    """What says how to pull is of no use without a pull, where it is not what the method's own file says."""
    method = config["method"]
    kl = method.get("kl")
    if not isinstance(kl, dict) or kl.get("coef"):
        return
    known = _file_of(method).get("kl") or {}
    for key in (key for key, value in known.items() if key != "coef" and kl.get(key, value) != value):
        yield Problem(f"method.kl.{key}", "is of no use: with method.kl.coef=0 there is no pull", "method.kl.coef=0.05, or leave it out")


def _file_of(method: Config) -> Config:
    """The values in the file of a built-in method; none for one of the user's own."""
    file = config_dir() / "method" / f"{method.get('name')}.yaml"
    return (yaml.safe_load(file.read_text(encoding="utf-8")).get("method") or {}) if file.is_file() else {}


def rewards_reward(config: Config) -> Iterator[Problem]:
    """Some component counts, and can say more than one thing."""
    nodes = {name: node for name, node in (config["reward"] or {}).items() if isinstance(node, dict)}
    if nodes and not any(node.get("weight", 1.0) for node in nodes.values()):
        name = next(iter(nodes))
        message = "no component of the reward has a weight, so all answers are worth 0, and nothing can be learnt"
        yield Problem(f"reward.{name}.weight", message, f"reward.{name}.weight=1, or one more component: reward=[{name},math]")
    for name, node in nodes.items():
        letters = node.get("letters", "AB") if node.get("_target_") == CHOICE else "AB"
        if not isinstance(letters, str) or not letters.isalnum() or len(set(letters.upper())) < 2:
            message = f"expected the letters of two options at least, got {letters!r}"
            yield Problem(f"reward.{name}.letters", message, f"reward.{name}.letters=ABCD")


def stops_are_texts(config: Config) -> Iterator[Problem]:
    """An empty text is in every answer."""
    stop = (config["rollout"] or {}).get("stop")
    if isinstance(stop, list) and "" in stop:
        yield Problem("rollout.stop", "an empty text would end every answer before it begins", "leave it out: rollout.stop=[]")


def _is_set(method: Config, key: str) -> bool:
    """Whether a key of the method has another value than its class gives it."""
    signature = read_signature(str(method.get("_target_")))
    known = None if signature is None else signature.parameters.get(key)
    return known is not None and key in method and method[key] != known.default


RULES: dict[Callable[[Config], Iterator[Problem]], tuple[str, ...]] = {  # with the keys that each relies on
    sampling_fits_method: ("method", "rollout", "reward"),
    rollout_is_known: ("method", "rollout"),
    answers_fit: ("rollout", "evaluation", "model"),
    references_are_asked: ("method",),
    advantages_have_groups: ("method", "rollout"),
    comparisons_have_groups: ("rollout", "reward"),
    options_have_effect: ("method",),
    pulls_pull: ("method",),
    rewards_reward: ("reward",),
    stops_are_texts: ("rollout",),
    judges_have_backends: ("reward",),
}
