from hypothesis import given
from hypothesis import strategies as st

from t5x_lite.tree_paths import flatten, unflatten

NAMES = st.text("abcdef_0", min_size=1, max_size=3)
TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(NAMES, inner, min_size=1), max_leaves=15
)


@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_leaves_by_their_paths_make_the_tree_again(tree):
    assert unflatten(flatten(tree)) == tree


def test_a_path_names_every_dict_on_the_way():
    assert flatten({"b": {"c": 2}, "a": 1}) == {"a": 1, "b/c": 2}


def test_what_counts_as_a_leaf_can_be_said():
    assert flatten({"a": (1, 2)}, is_leaf=lambda node: isinstance(node, tuple)) == {"a": (1, 2)}
