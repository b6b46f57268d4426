"""Strategies beside Lightning's own."""

from lightning.pytorch.strategies import ModelParallelStrategy


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all ranks: weights, gradients and optimiser state in shards, batches of each rank's own.

    Lightning's ModelParallelStrategy splits over the nodes alone unless it is told the number of ranks.

    Args:
        save_distributed_checkpoint: a folder with a file a rank instead of one file, which other runs can start from.
    """

    def __init__(self, save_distributed_checkpoint: bool = False) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_distributed_checkpoint)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
