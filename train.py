"""Fine-tune BLIP for image captioning: `accelerate launch train.py --dataset flickr8k`."""

import sys


def main() -> int:
    from blip_lite.config import ConfigError, TrainConfig, parse

    try:
        config = parse(TrainConfig)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if config.audit:
        from blip_lite.audit import audit
        from blip_lite.data import DataError

        try:
            return int(audit(config)["leaks"] > 0)
        except (ConfigError, DataError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    import torch

    from blip_lite.checkpoint import TIME_UP
    from blip_lite.data import DataError  # after --help and wrong settings: these imports take seconds
    from blip_lite.preflight import plan, sanity
    from blip_lite.pretrained import CheckpointError
    from blip_lite.training import Stopped, TrainingError, out_of_memory, train

    try:
        run = sanity if config.sanity else plan if config.plan else train
        run(config)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(f"error: {out_of_memory(config.resolved())}", file=sys.stderr)
        return 1
    except Stopped as stopped:  # as the shell names signals: 143 for SIGTERM, 130 for Ctrl-C; 75 is "try again"
        return 75 if stopped.number == TIME_UP else 128 + stopped.number
    return 0


if __name__ == "__main__":
    sys.exit(main())
