import jax.numpy as jnp
import numpy as np

from t5x_lite.models.attention import KeyValue, causal_mask, segment_mask


def test_a_query_looks_at_keys_of_its_own_segment():
    mask = segment_mask(jnp.array([[1, 1, 2, 0]]), jnp.array([[1, 2, 2, 0, 0]]))
    expected = [
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 1],  # padding sees padding, so that its row is not empty
    ]
    np.testing.assert_array_equal(mask[0, 0], np.array(expected, bool))


def test_a_query_sees_itself_and_what_came_before():
    np.testing.assert_array_equal(causal_mask(4)[0, 0], np.tri(4, dtype=bool))


def test_a_cache_is_written_in_one_place_and_the_old_one_stays_as_it_was():
    old = KeyValue(jnp.zeros((2, 4, 1, 3)), jnp.zeros((2, 4, 1, 3)))
    new = KeyValue(jnp.ones((2, 1, 1, 3)), jnp.full((2, 1, 1, 3), 2.0))
    written = old.update_at(jnp.int32(2), new)
    assert written.k_bkhd[:, :, 0, 0].tolist() == [[0, 0, 1, 0]] * 2
    assert written.v_bkhd[:, :, 0, 0].tolist() == [[0, 0, 2, 0]] * 2
    assert not old.k_bkhd.any()
