"""--reuse_features and --merge_tokens: in the pictures, in what their files tell, and where they are refused."""

import pytest
from _script_models import unconditional, written
from _txt2img import difference, draw


def test_pictures_tell_what_approximated_them_and_differ(run):
    flags = ("--n_samples", 1, "--n_iter", 1)
    (exact,) = draw(run, *flags, out="exact")
    assert not {"reuse_features", "merge_tokens"} & set(exact[1])
    for name, value in (("reuse_features", 3), ("merge_tokens", 0.75)):
        made = draw(run, *flags, f"--{name}", value, out=name)[0]
        assert {**exact[1], name: value} == made[1]
        assert 0 < difference(made, exact)
    again = draw(run, *flags, "--reuse_features", 3, "--low_mem", out="again")[0]
    assert difference(again, draw(run, *flags, "--reuse_features", 3, out="once")[0]) <= 1


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--reuse_features", 0), "'0': give an integer of at least 1"),
        (("--merge_tokens", 0.8), "'0.8': give a number from 0 to 0.75"),
        (("--reuse_features", 2, "--compile"), "--reuse_features and --compile"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_a_model_is_loaded(run, no_model, flags, said):
    status, _, lines = run("--prompt", "a red circle", *flags)
    assert status != 0 and said in lines[-1]


def test_merging_tokens_of_a_model_without_such_attention_is_one_line(run, tmp_path):
    model = written(tmp_path, unconditional)
    status, _, lines = run("--merge_tokens", 0.5, model=model)
    assert status != 0 and "has no effect" in lines[-1]
