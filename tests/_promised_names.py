"""What `from MODULE import NAME` finds here: the names that repositories written against CompVis' `ldm` import.

`PROMISED`: module → names. `SIGNATURES`: path → CompVis' parameters, in their order and with their defaults, which ours
begins with; a bare * stands where CompVis takes the rest by keyword only.
"""

PROMISED = {
    "ldm.util": """
        count_params default exists get_obj_from_str instantiate_from_config isimage ismap log_txt_as_img mean_flat
    """,
    "ldm.lr_scheduler": "LambdaLinearScheduler LambdaWarmUpCosineScheduler LambdaWarmUpCosineScheduler2",
    "ldm.models.autoencoder": "AutoencoderKL IdentityFirstStage VQModel VQModelInterface",
    "ldm.models.diffusion.ddim": "DDIMSampler",
    "ldm.models.diffusion.ddpm": """
        DDPM DiffusionWrapper LatentDepth2ImageDiffusion LatentDiffusion LatentFinetuneDiffusion LatentInpaintDiffusion
        LatentUpscaleDiffusion disabled_train uniform_on_device
    """,
    "ldm.models.diffusion.dpm_solver": "DPMSolverSampler",
    "ldm.models.diffusion.plms": "PLMSSampler",
    "ldm.models.diffusion.sampling_util": """
        append_dims norm_thresholding renorm_thresholding spatial_norm_thresholding
    """,
    "ldm.modules.attention": """
        BasicTransformerBlock CrossAttention FeedForward GEGLU LinearAttention MemoryEfficientCrossAttention Normalize
        SpatialSelfAttention SpatialTransformer checkpoint default exists init_ max_neg_value uniq zero_module
    """,
    "ldm.modules.diffusionmodules.model": """
        AttnBlock Decoder Downsample Encoder LinAttnBlock MemoryEfficientAttnBlock Model Normalize ResnetBlock Upsample
        get_timestep_embedding make_attn nonlinearity
    """,
    "ldm.modules.diffusionmodules.openaimodel": """
        AttentionBlock AttentionPool2d Downsample EncoderUNetModel QKVAttention QKVAttentionLegacy ResBlock
        SpatialTransformer TimestepBlock TimestepEmbedSequential TransposedUpsample UNetModel Upsample avg_pool_nd
        checkpoint conv_nd convert_module_to_f16 convert_module_to_f32 exists linear normalization timestep_embedding
        zero_module
    """,
    "ldm.modules.diffusionmodules.upscaling": """
        AbstractLowScaleModel ImageConcatWithNoiseAugmentation SimpleImageConcat
    """,
    "ldm.modules.diffusionmodules.util": """
        GroupNorm32 HybridConditioner SiLU avg_pool_nd betas_for_alpha_bar checkpoint conv_nd extract_into_tensor
        instantiate_from_config linear make_beta_schedule make_ddim_sampling_parameters make_ddim_timesteps mean_flat
        noise_like normalization scale_module timestep_embedding zero_module
    """,
    "ldm.modules.distributions.distributions": """
        AbstractDistribution DiagonalGaussianDistribution DiracDistribution normal_kl
    """,
    "ldm.modules.ema": "LitEma",
    "ldm.modules.embedding_manager": "EmbeddingManager",
    "ldm.modules.encoders.modules": """
        AbstractEncoder BERTEmbedder BERTTokenizer ClassEmbedder FrozenCLIPEmbedder FrozenOpenCLIPEmbedder
        IdentityEncoder SpatialRescaler TransformerEmbedder
    """,
    "ldm.modules.x_transformer": "AbsolutePositionalEmbedding Encoder TransformerWrapper",
}
PROMISED = {module: tuple(names.split()) for module, names in PROMISED.items()}

_UTIL, _OPENAI = "ldm.modules.diffusionmodules.util", "ldm.modules.diffusionmodules.openaimodel"
_ATTENTION, _MODEL = "ldm.modules.attention", "ldm.modules.diffusionmodules.model"
_ENCODERS = "ldm.modules.encoders.modules"
_LISTS = "warm_up_steps, f_min, f_max, f_start, cycle_lengths, verbosity_interval=0"
_CROSS = "query_dim, context_dim=None, heads=8, dim_head=64, dropout=0."
_UNET = """
    image_size, in_channels, model_channels, out_channels, num_res_blocks, attention_resolutions, dropout=0,
    channel_mult=(1, 2, 4, 8), conv_resample=True, dims=2
"""

SIGNATURES = {
    "ldm.util.log_txt_as_img": "wh, xc, size=10",
    "ldm.util.count_params": "model, verbose=False",
    "ldm.util.default": "val, d",
    "ldm.util.get_obj_from_str": "string, reload=False",
    "ldm.util.instantiate_from_config": "config",
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler": (
        "warm_up_steps, lr_min, lr_max, lr_start, max_decay_steps, verbosity_interval=0"
    ),
    "ldm.lr_scheduler.LambdaWarmUpCosineScheduler2": _LISTS,
    "ldm.lr_scheduler.LambdaLinearScheduler": _LISTS,
    "ldm.models.diffusion.sampling_util.append_dims": "x, target_dims",
    "ldm.models.diffusion.sampling_util.norm_thresholding": "x0, value",
    "ldm.models.diffusion.sampling_util.renorm_thresholding": "x0, value",
    "ldm.models.diffusion.sampling_util.spatial_norm_thresholding": "x0, value",
    "ldm.modules.distributions.distributions.normal_kl": "mean1, logvar1, mean2, logvar2",
    "ldm.modules.distributions.distributions.DiracDistribution": "value",
    "ldm.modules.distributions.distributions.DiagonalGaussianDistribution": "parameters, deterministic=False",
    "ldm.modules.ema.LitEma": "model, decay=0.9999, use_num_upates=True",
    f"{_ATTENTION}.GEGLU": "dim_in, dim_out",
    f"{_ATTENTION}.FeedForward": "dim, dim_out=None, mult=4, glu=False, dropout=0.",
    f"{_ATTENTION}.LinearAttention": "dim, heads=4, dim_head=32",
    f"{_ATTENTION}.SpatialSelfAttention": "in_channels",
    f"{_ATTENTION}.CrossAttention": _CROSS,
    f"{_ATTENTION}.CrossAttention.forward": "self, x, context=None, mask=None",
    f"{_ATTENTION}.MemoryEfficientCrossAttention": _CROSS,
    f"{_ATTENTION}.BasicTransformerBlock": (
        "dim, n_heads, d_head, dropout=0., context_dim=None, gated_ff=True, checkpoint=True, disable_self_attn=False"
    ),
    f"{_ATTENTION}.BasicTransformerBlock.forward": "self, x, context=None",
    f"{_ATTENTION}.SpatialTransformer": (
        "in_channels, n_heads, d_head, depth=1, dropout=0., context_dim=None, disable_self_attn=False,"
        " use_linear=False, use_checkpoint=True"
    ),
    f"{_ATTENTION}.SpatialTransformer.forward": "self, x, context=None",
    f"{_UTIL}.make_beta_schedule": "schedule, n_timestep, linear_start=1e-4, linear_end=2e-2, cosine_s=8e-3",
    f"{_UTIL}.make_ddim_timesteps": "ddim_discr_method, num_ddim_timesteps, num_ddpm_timesteps, verbose=True",
    f"{_UTIL}.make_ddim_sampling_parameters": "alphacums, ddim_timesteps, eta, verbose=True",
    f"{_UTIL}.betas_for_alpha_bar": "num_diffusion_timesteps, alpha_bar, max_beta=0.999",
    f"{_UTIL}.extract_into_tensor": "a, t, x_shape",
    f"{_UTIL}.noise_like": "shape, device, repeat=False",
    f"{_UTIL}.timestep_embedding": "timesteps, dim, max_period=10000, repeat_only=False",
    f"{_UTIL}.scale_module": "module, scale",
    f"{_UTIL}.HybridConditioner": "c_concat_config, c_crossattn_config",
    f"{_OPENAI}.TransposedUpsample": "channels, out_channels=None, ks=5",
    f"{_OPENAI}.AttentionPool2d": "spacial_dim, embed_dim, num_heads_channels, output_dim=None",
    f"{_OPENAI}.QKVAttention": "n_heads",
    f"{_OPENAI}.QKVAttentionLegacy": "n_heads",
    f"{_OPENAI}.Upsample": "channels, use_conv, dims=2, out_channels=None, padding=1",
    f"{_OPENAI}.Downsample": "channels, use_conv, dims=2, out_channels=None, padding=1",
    f"{_OPENAI}.ResBlock": (
        "channels, emb_channels, dropout, out_channels=None, use_conv=False, use_scale_shift_norm=False, dims=2,"
        " use_checkpoint=False, up=False, down=False"
    ),
    f"{_OPENAI}.AttentionBlock": (
        "channels, num_heads=1, num_head_channels=-1, use_checkpoint=False, use_new_attention_order=False"
    ),
    f"{_OPENAI}.UNetModel": f"""
        {_UNET}, num_classes=None, use_checkpoint=False, use_fp16=False, num_heads=-1, num_head_channels=-1,
        num_heads_upsample=-1, use_scale_shift_norm=False, resblock_updown=False, use_new_attention_order=False,
        use_spatial_transformer=False, transformer_depth=1, context_dim=None, n_embed=None, legacy=True,
        disable_self_attentions=None, num_attention_blocks=None, disable_middle_self_attn=False,
        use_linear_in_transformer=False, adm_in_channels=None
    """,
    f"{_OPENAI}.UNetModel.forward": "self, x, timesteps=None, context=None, y=None",
    f"{_OPENAI}.EncoderUNetModel": f"""
        {_UNET}, use_checkpoint=False, use_fp16=False, num_heads=1, num_head_channels=-1, num_heads_upsample=-1,
        use_scale_shift_norm=False, resblock_updown=False, use_new_attention_order=False, pool="adaptive"
    """,
    f"{_OPENAI}.EncoderUNetModel.forward": "self, x, timesteps",
    f"{_MODEL}.nonlinearity": "x",
    f"{_MODEL}.make_attn": "in_channels, attn_type='vanilla'",
    f"{_MODEL}.get_timestep_embedding": "timesteps, embedding_dim",
    f"{_MODEL}.Upsample": "in_channels, with_conv",
    f"{_MODEL}.Downsample": "in_channels, with_conv",
    f"{_ENCODERS}.ClassEmbedder": "embed_dim, n_classes=1000, key='class'",
    f"{_ENCODERS}.SpatialRescaler": (
        "n_stages=1, method='bilinear', multiplier=0.5, in_channels=3, out_channels=None, bias=False"
    ),
    "ldm.modules.x_transformer.TransformerWrapper": "*, num_tokens, max_seq_len, attn_layers",
    "ldm.modules.x_transformer.TransformerWrapper.forward": "self, x, return_embeddings=False, mask=None",
}
