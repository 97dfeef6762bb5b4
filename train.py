"""Fine-tune BLIP for image captioning: `accelerate launch train.py --dataset flickr8k`."""

import sys


def main() -> int:
    from blip_lite.config import ConfigError, TrainConfig, parse

    try:
        config = parse(TrainConfig)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from blip_lite.data import DataError  # after --help and wrong settings: these imports take seconds
    from blip_lite.preflight import plan, sanity
    from blip_lite.pretrained import CheckpointError
    from blip_lite.training import TrainingError, train

    try:
        run = sanity if config.sanity else plan if config.plan else train
        run(config)
    except (ConfigError, DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
