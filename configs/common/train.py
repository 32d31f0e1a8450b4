# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every setting of a run that does not describe model, data, optimizer or schedule.

A key that is not listed here does not exist; a run's config changes values only.
"""

train = dict(
    # Everything a run writes; a folder that holds another run is refused unless --resume is given.
    output_dir="output/train",
    # Weights to start from: a file, Hugging Face folder or URL, of this project, the published
    # code, transformers, detrex, mmdetection or TAO. A file of a backbone fills the backbone only.
    init_checkpoint="",
    # What heads take from it. classes: None or "same", "reinitialise", "by_name" (keep the outputs
    # of classes that both have) or {"class here": "class there"}; objectness: output 0 of a
    # two-stage model's proposal head; boxes: the box heads. Refused if less than min_share of the
    # parameters come from the file. weights: "model", or "ema", their average in a checkpoint of
    # this project.
    init=dict(classes=None, objectness=True, boxes=True, min_share=0.9, weights="model"),
    # Learning rate for this run's batch (all processes, accumulated): rule is "linear" or "sqrt" in
    # its share of the reference batch that the rate was chosen for; "": as it stands.
    scale_lr=dict(rule="", reference=16),
    # Parts that are not trained, by the names of modules or parameters, such as ["backbone",
    # "transformer.encoder.layers.*.norm1"]. A name that fits nothing is an error.
    freeze=[],
    # "auto" (GPU if there is one), "cuda" or "cpu".
    device="auto",
    # Same seed, same machine: same losses. -1 draws one and writes it into config.yaml.
    seed=42,
    # Length of training; max_iter (optimizer steps), if set, wins.
    epochs=50,
    max_iter=None,
    # Two steps, evaluation on a few images and a checkpoint of its own, in output_dir/fast_dev_run.
    fast_dev_run=False,
    # Mixed precision: dtype is "bf16" or "fp16". Matcher and losses stay in float32.
    amp=dict(enabled=False, dtype="bf16"),
    # torch.compile the transformer's layers: for a GPU, which is then given fewer, larger kernels.
    # On a CPU training gets slower. Compiling takes about a minute and a C++ compiler.
    compile=False,
    # Passed to torch's DistributedDataParallel when there are several processes.
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False),
    # In place of it torch's FSDP2: each process holds a share of weights, gradients and optimizer
    # state. reshard_after_forward=False keeps a layer's whole weights until its backward pass.
    fsdp=dict(enabled=False, reshard_after_forward=True),
    # Images computed at a time, over all processes: a number, "auto" for as many as fit into memory
    # (config.yaml then holds the number), or None for dataloader.train.total_batch_size.
    batch_size=None,
    # Batches in one optimizer step, which is that of one batch of all their images (but for
    # rounding, where they are padded alike); total_batch_size stays what is computed at a time.
    accumulate=1,
    # Clip the gradient's norm over all parameters; the norm is logged either way.
    clip_grad=dict(enabled=True, params=dict(max_norm=0.1, norm_type=2.0)),
    # A loss or gradient that is not finite, in any process: "stop" (the batch, config and weights
    # go to nan_step_N for tools/replay_batch.py), "skip" the step, or skip it and "halve_scale" of
    # fp16. After more than limit such steps in a row the run stops in any case.
    nan=dict(policy="stop", limit=10),
    # Exponential moving average of the weights, in every checkpoint beside them and evaluated under
    # keys that begin with "ema/". After so many steps as warmup has, decay is at 63 % of its value,
    # after three times as many at 95 %.
    ema=dict(enabled=False, decay=0.9999, warmup=2000),
    # Checkpoint every so many epochs (fractions allowed, 0: at the end only), keep the newest few;
    # two at least, so that there is one to fall back on, or all (0).
    checkpointer=dict(period_epochs=1, max_to_keep=5),
    # Evaluate every so many epochs (0: at the end only).
    eval_period_epochs=1,
    # At each evaluation also the losses of training on the test images: val/loss and its parts.
    eval_loss=False,
    # Keep the weights of the best evaluation as model_best.pth, by one of its numbers, such as
    # "bbox/AP50" or "val/loss"; mode is "max" or "min". "": keep none.
    best=dict(metric="", mode="max"),
    # End after so many evaluations in a row without a better value of one number. "": never.
    early_stopping=dict(metric="", patience=10, mode="max"),
    # At each evaluation also an HTML page beside the predictions, report/index.html: figures with
    # intervals, curves, a threshold to move, and a gallery.
    report=False,
    # Write metrics to console, metrics.json and TensorBoard every so many steps.
    log_period=20,
    # Also write them to "wandb" (Weights & Biases) or "mlflow"; with options: {"wandb": {"project":
    # "mammography"}}. Whatever fails there does not touch the run.
    writers=[],
    # At each evaluation draw so many test images, truth beside predictions, into TensorBoard.
    tensorboard_images=0,
)
