"""What is typed beats what a recipe says; one reading is taken; every mistake is told in plain words."""

import pytest

from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.configs.loading import load, recipes
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.pretrain.config.run import PretrainConfig

HEADER = ["run_dir=x", "data.images=x", "data.labels=y", "checkpoint=z"]  # what a recipe's user adds
STUDIES = sorted(recipes("finetune"))
RUNS = sorted(recipes("pretrain"))


def study(name: str, *words: str) -> FinetuneConfig:
    return load(FinetuneConfig, name, "finetune", [*HEADER, *words])


def run(name: str, *words: str) -> PretrainConfig:
    return load(PretrainConfig, name, "pretrain", ["run_dir=x", *words])


@pytest.mark.parametrize("recipe", STUDIES)
def test_every_recipe_yields_to_what_is_typed(recipe):
    assert study(recipe, "budget=10min").budget == 600
    scratch = load(FinetuneConfig, recipe, "finetune", ["run_dir=x", "data.images=x", "backbone=stunet"])
    assert (scratch.checkpoint, scratch.backbone.name) == (None, "stunet")
    whole = load(FinetuneConfig, recipe, "finetune", ["run_dir=x", "data.path=p", "checkpoint=z"])
    assert (whole.data.path, whole.data.images) == ("p", None)
    assert study(recipe, "validation.fraction=0.2").validation.fraction == 0.2
    assert study(recipe, "split.official=true").split.official
    assert study(recipe, "split.file=s.json").split.file.name == "s.json"
    assert study(recipe, "split.test_fraction=0.4").split.test_fraction == 0.4
    for task in ("segmentation", "classification", "regression", "detection"):
        assert study(recipe, f"task={task}").task.name == task
        assert study(recipe, f"task.name={task}").task.name == task
    assert study(recipe, "task=classification", "task.label_column=c").task.label_column == "c"


@pytest.mark.parametrize("recipe", RUNS)
def test_every_run_takes_another_backbone_and_objective_by_name(recipe):
    assert run(recipe, "objective=spark", "backbone=stunet").objective.name == "spark"
    assert run(recipe, "objective.name=mae", "backbone.name=vit").backbone.name == "vit"


def test_two_contradicting_words_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"leave out schedule\.steps"):
        study("demo", "budget=10min", "schedule.steps=7")
    with pytest.raises(UserError, match="not both"):
        study("demo", "data.path=p")
    path = tmp_path / "mine.yaml"
    path.write_text(
        "run_dir: x\ntask: segmentation\ndata: {path: p}\nbackbone: vit\nbudget: 1h\nschedule: {steps: 5}\n"
    )
    with pytest.raises(UserError, match=r"leave out schedule\.steps"):
        load(FinetuneConfig, path, "finetune", [])
    assert load(FinetuneConfig, path, "finetune", ["schedule.steps=9"]).budget is None
    assert load(FinetuneConfig, path, "finetune", ["budget=null"]).schedule.steps == 5
    assert load(FinetuneConfig, path, "finetune", ["schedule={steps: 8}"]).schedule.steps == 8
    assert load(FinetuneConfig, path, "finetune", ["checkpoint=c", "budget=null"]).backbone is None


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [("shots=5", "shots", [5]), ("shots=all", "shots", ["all"]), ("shots=5,10,all", "shots", [5, 10, "all"]),
     ("seeds=0,1", "seeds", [0, 1]), ("recipes=lora", "recipes", ["lora"]), ("recipes=full,lora", "recipes",
     ["full", "lora"])],
)  # fmt: skip
def test_one_reading_is_taken(word, key, value):
    assert getattr(study("demo", word), key) == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shots=x"], "shots.0: 'x' is not a number or 'all'"),
        (["shots=0"], "shots.0: must be greater than or equal to 1, not 0"),
        (["backbone=unet"], "backbone: there is no 'unet'; did you mean 'stunet'? (choose of 'mednext', 'primus',"),
        (["backbone.name=resnet"], "backbone: there is no 'resnet'; did you mean 'resenc'?"),
        (["schedule.steps=abc"], "schedule.steps: 'abc' is not a whole number"),
        (["steps=5"], "unknown key 'steps'; did you mean 'schedule.steps'?"),
        (["lr=1"], "unknown key 'lr'; did you mean 'schedule.lr'?"),
        (["recipes=lroa"], "there is no 'lroa'; did you mean 'lora'?"),
        (["device=gpu"], "did you mean 'cuda'?"),
        (["split.official=maybe"], "split.official: 'maybe' is not true or false"),
        (["schedule=5"], "schedule: 5 is not a mapping"),
        (["plan.patch=[32,32]"], "plan.patch.2: a value is missing"),
        (["plan.patch=32"], "plan.patch: 32 is not a list"),
        (["task.classes=[no,yes]"], "task.classes: YAML reads one of these names as False: put"),
        (["backbone.name=vit", "backbone.siz=S"], "unknown key 'backbone.siz'; did you mean 'size'?"),
        (["lora.rank=3"], "lora.rank does nothing here: it is for recipe 'lora'"),
        (["validation.patience=2"], "no cases are held back"),
        (["inference.mirror=true", "augmentation.flip_axes=[]"], "names no axis to mirror along"),
    ],
)
def test_a_mistake_is_told_in_plain_words(words, said):
    with pytest.raises(UserError) as caught:
        study("demo", *words)
    assert said in str(caught.value)
    assert "Input should" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_several_mistakes_are_a_line_each():
    with pytest.raises(UserErrors) as caught:
        study("demo", "shosts=3", "schedule.lr=-1", "seeds=x", "plan.batch=0")
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 mistakes in demo:"
    assert sorted(line.split(":")[0].split(";")[0].strip() for line in lines[1:]) == [
        "plan.batch", "schedule.lr", "seeds.0", "unknown key 'shosts'",
    ]  # fmt: skip


@pytest.mark.parametrize("words", [["stpes=3", "steps=null"], ["objective=spakr"], ["probes=segmentation"],
                                   ["data.sources.0.pth=x"], ["steps=10"], ["wandb=yes"], ["backbone=5"]])  # fmt: skip
def test_pretraining_too(words):
    with pytest.raises(UserError) as caught:
        run("spark_stunet_volumes", *words)
    assert "Input should" not in str(caught.value)
    assert words[0].split("=")[0].split(".")[0] in str(caught.value)


def test_a_configuration_that_a_run_wrote_is_read_again(tmp_path):
    import yaml

    for kind, model, names in (("finetune", FinetuneConfig, STUDIES), ("pretrain", PretrainConfig, RUNS)):
        for name in names:
            made = study(name) if kind == "finetune" else run(name)
            path = tmp_path / f"{kind}-{name}.yaml"
            path.write_text(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
            assert load(model, path, kind, []) == made
    assert load(FinetuneConfig, tmp_path / "finetune-demo.yaml", "finetune", ["budget=1h"]).budget == 3600


@pytest.mark.parametrize("key", ["shots", "seeds", "schedule.steps", "schedule.lr", "plan.batch"])
@pytest.mark.parametrize("word", ["yes", "false"])
def test_yes_is_no_number(key, word):
    with pytest.raises(UserError, match=f"{key}.*'(true|false)' is not a (whole )?number"):
        study("demo", f"{key}={word}")


@pytest.mark.parametrize(
    "word", ["schedule.lr=.inf", "checkpoint_minutes=.nan", "plan.patch=[0, 8, 8]", "plan.spacing=[1, -1, 1]"]
)
def test_numbers_that_no_study_can_have(word):
    with pytest.raises(UserError, match=word.partition("=")[0]):
        study("demo", word)


def test_a_probe_by_its_kind_says_what_else_it_needs():
    with pytest.raises(UserError, match=r"probes.*data.* is missing"):
        run("demo", "probes=knn")
    with pytest.raises(UserError, match="'knn', 'linear', 'segmentation'"):
        run("demo", "probes=[{every: 3}]")
