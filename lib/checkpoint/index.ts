/** Checkpoints: reading, writing, converting, and the folders that runs write into. */
export { AtomicFile, writeFileAtomic } from './atomic-file.ts';
export { Checkpoint, openCheckpoint } from './checkpoint.ts';
export type { ConvertProgress, ConvertResult } from './checkpoint-copy.ts';
export { markSparse, unmarkSparse } from './config-text.ts';
export { type ConvertOptions, convertCheckpoint } from './convert.ts';
export { copyFiles } from './copy-files.ts';
export { type DType, type FloatDType, isDType, isFloatDType, tensorBytes, toFloat32 } from './dtype.ts';
export { OutputFolder, type OutputFolderOptions } from './output.ts';
export { writeShardIndex } from './shard-index.ts';
export { type EncodeOptions, encodeSparse } from './sparse-encode.ts';
export type {
  BitmaskTensor,
  ByteRange,
  CheckpointTensor,
  DenseTensor,
  FusedTensor,
  TensorSource,
  TensorToWrite,
} from './tensor.ts';
export { copyOf, type WriteOptions, writeSafetensors } from './writer.ts';
