/**
 * How `espalier convert --to packed` stores a model: matrices as they lie in memory while it runs, so that loading maps the
 * files and packs nothing. config.json says so with `quantization_config: { quant_method: "espalier", format: "packed",
 * version, weights }`, where `weights` is what they were rounded to; files start with `espalier-packed`.
 *
 * The first shard holds what is not packed (embedding, norms, biases, routers) under its own names. The others hold one U8
 * tensor for each matrix, a block as native/sparse/packed_block.h describes it, whose header gives format, shape, the
 * source's element type and the constants of the layout. A block starts at a multiple of 64 bytes of its file, the first
 * one of a file at a page. Tensor X is stored as `X.packed`; rows [row, row + rows) of expert e in a fused
 * `[experts, rows, columns]` tensor X as `X.packed.e.row`. A head that is tied to the embedding is packed beside it.
 */
import { EspalierError } from '../errors.ts';
import { callNative, type NativeSafetensorsFile, native } from '../native.ts';
import type { DType } from './dtype.ts';
import { sparseError } from './sparse-layout.ts';
import type { ByteRange, CheckpointTensor, DenseTensor, PackedPiece, PackedTensor } from './tensor.ts';

/** Blocks begin at multiples of so many bytes. */
export const blockAlignment = 64;
/** Where the first block of a file begins. */
export const pageBytes = 4096;

/** The precisions that a packed checkpoint was made with, by their names. */
export interface PackedWeights {
  readonly experts: string;
  readonly rest: string;
}

const marker = { quant_method: 'espalier', format: 'packed', version: 1 } as const;
const packedName = /^(.*)\.packed(?:\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8}))?$/s;

/** `quantization_config` of a packed checkpoint. */
export function packedConfig(weights: PackedWeights): object {
  return { ...marker, weights };
}

/** What config.json says of packed weights; undefined where they are not packed. Throws `CONFIG` for what it cannot mean. */
export function readPackedConfig(config: Readonly<Record<string, unknown>>, path: string): PackedWeights | undefined {
  const found = config.quantization_config as Record<string, unknown> | null | undefined;
  if (found?.quant_method !== marker.quant_method || found.format !== marker.format) return undefined;
  const { experts, rest } = (found.weights ?? {}) as Record<string, unknown>;
  if (found.version === marker.version && typeof experts === 'string' && typeof rest === 'string') {
    return { experts, rest };
  }
  throw new EspalierError(
    'CONFIG',
    `${path}: quantization_config has version ${JSON.stringify(found.version)} and weights ${JSON.stringify(found.weights)}; ` +
      `this version of Espalier reads version ${marker.version} with weights of experts and rest. Convert the source again.`,
    { file: path, field: 'quantization_config' },
  );
}

/** Throws `USAGE` for a packed checkpoint: what is to be pruned are the weights that it was made from. */
export function refusePacked({ dir, storage }: { readonly dir: string; readonly storage: string }): void {
  if (storage !== 'packed') return;
  throw new EspalierError('USAGE', `${dir} is packed; prune the checkpoint that it was made from and pack the result`, {
    file: dir,
  });
}

/** The name of the stored block of a tensor, or of an expert's rows in a fused one. */
export function blockName(tensor: string, slice?: { readonly expert: number; readonly row: number }): string {
  return slice === undefined ? `${tensor}.packed` : `${tensor}.packed.${slice.expert}.${slice.row}`;
}

/** Whether a stored tensor of this name is a packed matrix. */
export function isBlockName(name: string): boolean {
  return packedName.test(name);
}

export interface PackedCheckpoint {
  /** The tensors by name; one that is stored both ways as its elements. */
  readonly tensors: Map<string, CheckpointTensor>;
  readonly packed: Map<string, PackedTensor>;
}

/** The tensors that a packed checkpoint stands for. Throws `SPARSE` and `CONFIG` for blocks that cannot be used. */
export function packedTensors(files: readonly NativeSafetensorsFile[], paths: readonly string[]): PackedCheckpoint {
  const dense = new Map<string, DenseTensor>();
  const pieces = new Map<string, PackedPiece[]>();
  files.forEach((file, index) => {
    for (const tensor of file.tensors) {
      const match = packedName.exec(tensor.name);
      if (match === null) {
        dense.set(tensor.name, { kind: 'dense', ...tensor, dtype: tensor.dtype as DType, file: index });
        continue;
      }
      const [, name, expert, row] = match as unknown as [string, string, string | undefined, string | undefined];
      const path = paths[index]!;
      if (tensor.dtype !== 'U8' || tensor.begin % blockAlignment !== 0) {
        throw sparseError(`a packed matrix is U8 at a multiple of ${blockAlignment} bytes`, tensor.name, path);
      }
      const header = callNative(() => native().packedHeader(file, tensor.begin, tensor.end), {
        file: path,
        tensor: tensor.name,
      });
      const slice = expert === undefined ? undefined : { expert: Number(expert), row: Number(row) };
      const piece: PackedPiece = { ...header, dtype: header.dtype as DType, ...rangeOf(tensor, index), slice };
      pieces.set(name, [...(pieces.get(name) ?? []), piece]);
    }
  });
  const packed = new Map<string, PackedTensor>();
  for (const [name, found] of pieces) packed.set(name, assemble(name, found, paths));
  return { tensors: new Map<string, CheckpointTensor>([...packed, ...dense]), packed };
}

/** One matrix, or the pieces of a fused tensor in order, without holes and all alike. */
function assemble(name: string, pieces: PackedPiece[], paths: readonly string[]): PackedTensor {
  const first = pieces[0]!;
  const fail = (problem: string, { file }: PackedPiece) => sparseError(problem, name, paths[file]!);
  if (first.slice === undefined || pieces.some(({ slice }) => slice === undefined)) {
    if (pieces.length > 1) throw fail('it is packed twice', pieces[1]!);
    return { kind: 'packed', name, dtype: first.dtype, shape: [first.rows, first.cols], pieces };
  }
  const ordered = [...pieces].sort((a, b) => a.slice!.expert - b.slice!.expert || a.slice!.row - b.slice!.row);
  let [expert, row, height] = [0, 0, 0];
  for (const piece of ordered) {
    const { slice, rows, cols, dtype } = piece;
    if (slice!.expert === expert + 1 && (expert === 0 || row === height)) {
      if (expert === 0) height = row;
      [expert, row] = [expert + 1, 0];
    }
    if (slice!.expert !== expert || slice!.row !== row || cols !== first.cols || dtype !== first.dtype) {
      throw fail(`its packed rows of expert ${slice!.expert} from ${slice!.row} do not follow the others`, piece);
    }
    row += rows;
  }
  if (expert > 0 && row !== height) throw fail(`expert ${expert} has ${row} packed rows, others ${height}`, first);
  return { kind: 'packed', name, dtype: first.dtype, shape: [expert + 1, row, first.cols], pieces: ordered };
}

function rangeOf({ begin, end }: { begin: number; end: number }, file: number): ByteRange {
  return { file, begin, end };
}
