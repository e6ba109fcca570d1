"""The names that architectures use for the blocks of a decoder layer, and for the linear maps that end them."""

from __future__ import annotations

__all__ = ["BLOCKS", "KINDS", "OF_MANY_KINDS", "OUTPUT_MAPS"]

BLOCKS = {
    "mlp": (
        "mlp",
        "feed_forward",
        "ffn.ffn",
        "ffn",
        "ff",
        "block_sparse_moe",
        "moe",
        "shared_mlp",
        "mlp_block",
        "shared_transf.feed_forward",
        "shared_transformer.feed_forward",
        "output.dense",
        "fc2",
        "mixer",
    ),
    "attention": (
        "self_attn",
        "self_attention",
        "attention.output.dense",
        "attention",
        "attn",
        "norm_attn_norm.attn",
        "multi_head_attention",
        "self_att.self_attention",
        "shared_transf.self_attn",
        "shared_transformer.self_attn",
        "temporal_block",
        "mixer",
    ),
}
"""Names of the blocks in a decoder layer, by component. A block that lies inside another one (or a linear map that is
used as a block) comes before that other one."""

OF_MANY_KINDS = {"mixer", "temporal_block"}
"""Names that are used for blocks of several kinds. The class of such a block tells its kind."""

KINDS = {"mlp": ("mlp", "moe", "feedforward"), "attention": ("attention",)}
"""Parts of the names of classes that tell the kind of a block, by component."""

OUTPUT_MAPS = {
    "mlp": (
        "down_proj",
        "c_proj",
        "dense_4h_to_h",
        "fc2",
        "fc_out",
        "w2",
        "w_out",
        "wo",
        "Wo",
        "output_linear",
        "proj_2",
        "proj_down",
        "down",
        "output.dense",
        "2",
    ),
    "attention": (
        "o_proj",
        "o_proj.linear",
        "o_b_proj",
        "out_proj",
        "c_proj",
        "dense",
        "attention_out",
        "output_linear",
        "wo",
        "Wo",
        "out",
    ),
}
"""Names of the linear maps, or of the stacked weights of experts, that end a block, by component."""
