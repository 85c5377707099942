"""Store replies of NVIDIA's `MagpieTTSModel` for the small random releases, in `tests/data/replies.json`.

    python -m plugins.magpie.lab.magpie_replies

Runs with nemo_toolkit 3.0.0, in its own environment. `infer_batch` gets each text alone, in float64, with a cache of
keys and values, and takes the most probable codes.
"""

import json
from pathlib import Path
from typing import Any

import torch

from plugins.magpie.lab.random_magpie import KINDS, NUM_SPECIAL, VOICES, model_tensors, num_codes

OUT = Path(__file__).parents[1] / "tests/data/replies.json"
MAX_ROWS = 40
# Number of tokens of a text, voice, guidance scale and whether there is a prior.
REQUESTS = ((4, 0, 2.5, True), (12, 1, 2.5, True), (23, 2, 1.7, True), (40, 1, 1.0, True), (17, 0, 2.5, False))


def text_of(kind: str, number: int) -> list[int]:
    """Return the token ids of a text of REQUESTS."""
    random = torch.Generator().manual_seed(number)
    size = len(model_tensors(kind)["text_embedding.weight"])
    ids = torch.randint(0, size - 2, (REQUESTS[number][0] - 1,), generator=random)
    return [*ids.tolist(), size - 1]


def loaded(kind: str) -> Any:
    """Return the authors' model with the tensors of a release, without codec and tokenizers."""
    from nemo.collections.tts.models.magpietts import MagpieTTSModel
    from nemo.collections.tts.modules.magpietts_modules import LocalTransformerHelper, LocalTransformerType
    from nemo.collections.tts.modules.transformer_2501 import Transformer

    config = KINDS[kind]
    number, num_ids = num_codes(kind)
    num_frames = config.get("frame_stacking_factor", 1)
    width = config["embedding_dim"]
    hidden = config["local_transformer_hidden_dim"]
    tensors = model_tensors(kind)
    model: Any = MagpieTTSModel.__new__(MagpieTTSModel)
    torch.nn.Module.__init__(model)
    model.num_audio_codebooks = number // num_frames
    model.frame_stacking_factor = num_frames
    model.codebook_size = num_ids - NUM_SPECIAL
    model.num_all_tokens_per_codebook = num_ids
    model.audio_bos_id = model.codebook_size
    model.audio_eos_id = model.codebook_size + 1
    model.mask_token_id = model.codebook_size + 4
    model.model_type = "decoder_ce"
    model.use_bpe_char_tokenizer = False
    model.use_kv_cache_for_inference = True
    model.output_sample_rate = 22050
    model.transcript_decoder_layers = list(range(config["decoder"]["n_layers"]))
    model.ctc_prior_layer_ids = None
    model.global_step = 0
    model.text_embedding = torch.nn.Embedding(*tensors["text_embedding.weight"].shape)
    model.audio_embeddings = torch.nn.ModuleList(torch.nn.Embedding(num_ids, width) for _ in range(number))
    model.encoder = Transformer(**config["encoder"])
    model.decoder = Transformer(**config["decoder"])
    model.final_proj = torch.nn.Linear(width, number * num_ids)
    model.local_transformer_type = LocalTransformerType.AR
    model.local_transformer_in_projection = torch.nn.Identity() if hidden == width else torch.nn.Linear(width, hidden)
    model.local_transformer = Transformer(
        n_layers=config["local_transformer_n_layers"],
        d_model=hidden,
        d_ffn=4 * hidden,
        sa_n_heads=config["local_transformer_n_heads"],
        kernel_size=1,
        is_causal=True,
        max_length_causal_mask=number + 2,
        use_learnable_pos_emb=True,
    )
    model.local_transformer_out_projections = torch.nn.ModuleList(
        torch.nn.Linear(hidden, num_ids) for _ in range(number)
    )
    num_voices, num_rows = VOICES[kind]
    model.baked_context_embedding = torch.nn.Embedding(num_voices, num_rows * width)
    model._baked_embedding_T = torch.tensor(num_rows)
    model._baked_embedding_D = torch.tensor(width)
    model.baked_context_embedding_len = torch.full((num_voices,), num_rows)
    masks = {name: tensor for name, tensor in model.named_buffers() if name.endswith("causal_mask")}
    torch.nn.Module.load_state_dict(model, tensors | masks)
    model._lt_helper = LocalTransformerHelper(
        local_transformer=model.local_transformer,
        audio_embeddings=model.audio_embeddings,
        audio_in_projection=torch.nn.Identity(),
        local_transformer_in_projection=model.local_transformer_in_projection,
        local_transformer_audio_out_projection=torch.nn.Identity(),
        local_transformer_out_projections=model.local_transformer_out_projections,
        num_audio_codebooks=model.num_audio_codebooks,
        frame_stacking_factor=num_frames,
        audio_eos_id=model.audio_eos_id,
        mask_token_id=model.mask_token_id,
        codebook_size=model.codebook_size,
    )
    return model.double().eval()


class NoCodec:
    """Codec that returns silence."""

    def codes_to_audio(self, codes: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.zeros(len(codes), 1), torch.ones(len(codes)), codes


def replies(kind: str) -> list[list[list[int]]]:
    """Return the codes of each row of the replies to REQUESTS."""
    from nemo.collections.tts.models.magpietts import ModelInferenceParameters

    model = loaded(kind)
    model._codec_helper = NoCodec()
    stacked = model.frame_stacking_factor
    found = []
    for number, (_, voice, scale, has_prior) in enumerate(REQUESTS):
        model.inference_parameters = ModelInferenceParameters.from_dict(
            KINDS[kind]["inference_parameters"]
            | {"max_decoder_steps": MAX_ROWS * stacked, "temperature": 0.0, "topk": 1, "cfg_scale": scale}
            | {"apply_attention_prior": has_prior}
        )
        ids = torch.tensor([text_of(kind, number)])
        batch = {"text": ids, "text_lens": torch.tensor([ids.shape[1]]), "speaker_indices": voice}
        is_guided = scale != 1.0
        output = model.infer_batch(batch, use_cfg=is_guided, use_local_transformer_for_inference=True)
        length = int(output.predicted_codes_lens[0])
        rows = length // stacked  # a row in which only a later frame ends is left out
        codes = output.predicted_codes[0, :, : rows * stacked]
        found.append(codes.unflatten(1, (rows, stacked)).permute(1, 2, 0).flatten(1).tolist())
    return found


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({kind: replies(kind) for kind in KINDS}, separators=(",", ":")) + "\n")
