/**
 * How `--save sparse` stores a checkpoint, marked by `quantization_config: { quant_method: "espalier", … }` in
 * config.json so that other loaders refuse it, and kept in files that start with `espalier` instead of `model`, because
 * some of them only warn of the former and start from random experts. Matrices become four stored tensors, named after the module, which is the
 * tensor's name without `.weight`:
 *
 * - `<module>.compressed`: `[kept]` of the matrix's type, the kept elements in row-major order
 * - `<module>.bitmask`: U8 `[rows, ceil(columns / 8)]`, see bitmask.ts
 * - `<module>.shape`: I64 `[2]` = rows, columns
 * - `<module>.row_offsets`: I64 `[rows]`, how many elements are kept before each row
 *
 * A fused expert tensor X of shape `[experts, rows, columns]` is stored expert by expert as the modules `X.0`, `X.1`, …,
 * with `X.shape`: I64 `[3]` = experts, rows, columns, which says that they are one tensor and gives it its name back.
 * Everything else, and every matrix that would not get smaller, is stored as it was, under its own name. Names that end
 * in one of the four suffixes belong to this layout.
 */
import { EspalierError } from '../errors.ts';
import { callNative, type NativeSafetensorsFile, type NativeTensor } from '../native.ts';
import { maskBytes } from './bitmask.ts';
import { bytesOf, type DType, isFloatDType, tensorBytes } from './dtype.ts';
import type { BitmaskTensor, ByteRange, CheckpointTensor, FusedTensor } from './tensor.ts';

export const partSuffixes = ['compressed', 'bitmask', 'shape', 'row_offsets'] as const;
export type PartSuffix = (typeof partSuffixes)[number];

/** What `quantization_config` holds in a checkpoint saved sparse. */
export const sparseConfig = { quant_method: 'espalier', format: 'bitmask', version: 1 } as const;

const partName = /^(.*)\.(compressed|bitmask|shape|row_offsets)$/s;

/** Whether a stored tensor of this name is a part of a bitmask matrix. */
export function isPartName(name: string): boolean {
  return partName.test(name);
}

/** The module a matrix is stored under, undefined for names that have none. */
export function moduleOf(name: string): string | undefined {
  return name.endsWith('.weight') && name !== '.weight' ? name.slice(0, -'.weight'.length) : undefined;
}

/** Whether config.json marks a checkpoint as saved sparse. Throws `CONFIG` for a layout that this version cannot read. */
export function isSparseConfig(config: Readonly<Record<string, unknown>>, path: string): boolean {
  const found = config.quantization_config;
  if (typeof found !== 'object' || found === null) return false;
  const { quant_method, format, version } = found as Record<string, unknown>;
  if (quant_method !== sparseConfig.quant_method) return false;
  if (format === sparseConfig.format && version === sparseConfig.version) return true;
  throw new EspalierError(
    'CONFIG',
    `${path}: quantization_config has format ${JSON.stringify(format)} and version ${JSON.stringify(version)}; this ` +
      `version of Espalier reads format "${sparseConfig.format}", version ${sparseConfig.version}`,
    { file: path, field: 'quantization_config' },
  );
}

type Located = NativeTensor & ByteRange;
type Parts = Partial<Record<PartSuffix, Located>>;

/** The tensors that a sparse checkpoint stands for, by name. Throws `SPARSE` where parts are missing or disagree. */
export function logicalTensors(
  files: readonly NativeSafetensorsFile[],
  paths: readonly string[],
): Map<string, CheckpointTensor> {
  const tensors = new Map<string, CheckpointTensor>();
  const modules = new Map<string, Parts>();
  const add = (tensor: CheckpointTensor, file: number) => {
    if (tensors.has(tensor.name)) throw sparseError('it is stored twice', tensor.name, paths[file]!);
    tensors.set(tensor.name, tensor);
  };
  files.forEach((file, index) => {
    for (const tensor of file.tensors) {
      const match = partName.exec(tensor.name);
      if (match === null) {
        add({ kind: 'dense', ...tensor, dtype: tensor.dtype as DType, file: index }, index);
        continue;
      }
      const [, module, suffix] = match as unknown as [string, string, PartSuffix];
      const parts = modules.get(module) ?? {};
      parts[suffix] = { ...tensor, file: index };
      modules.set(module, parts);
    }
  });
  const taken = new Set<string>();
  for (const [name, { shape }] of modules) {
    if (shape === undefined || shape.shape[0] !== 3) continue;
    const fused = readFused(files, paths, modules, name);
    for (let expert = 0; expert < fused.shape[0]; expert++) taken.add(`${name}.${expert}`);
    taken.add(name);
    add(fused, shape.file);
  }
  for (const [module, parts] of modules) {
    if (taken.has(module)) continue;
    const matrix = readMatrix(files, paths, parts, module, `${module}.weight`);
    add(matrix, matrix.values.file);
  }
  return tensors;
}

function readFused(
  files: readonly NativeSafetensorsFile[],
  paths: readonly string[],
  modules: ReadonlyMap<string, Parts>,
  name: string,
): FusedTensor {
  const marker = modules.get(name)!.shape!;
  const path = paths[marker.file]!;
  const [count, rows, columns] = readShape(files, paths, marker, name) as [number, number, number];
  if (Object.keys(modules.get(name)!).length !== 1)
    throw sparseError('it is both one matrix and a fused tensor', name, path);
  const experts: BitmaskTensor[] = [];
  for (let expert = 0; expert < count; expert++) {
    const module = `${name}.${expert}`;
    const parts = modules.get(module);
    if (parts === undefined)
      throw sparseError(`its shape promises ${count} experts, but ${module} is missing`, name, path);
    const matrix = readMatrix(files, paths, parts, module, module);
    if (matrix.shape[0] !== rows || matrix.shape[1] !== columns || matrix.dtype !== (experts[0] ?? matrix).dtype) {
      throw sparseError(
        `expert ${expert} is ${matrix.dtype} [${matrix.shape}], unlike the fused shape [${[count, rows, columns]}]`,
        name,
        path,
      );
    }
    experts.push(matrix);
  }
  if (experts.length === 0) throw sparseError('it has no experts', name, path);
  return { kind: 'fused', name, dtype: experts[0]!.dtype, shape: [count, rows, columns], experts };
}

function readMatrix(
  files: readonly NativeSafetensorsFile[],
  paths: readonly string[],
  parts: Parts,
  module: string,
  name: string,
): BitmaskTensor {
  const somewhere = Object.values(parts)[0]!;
  const fail = (problem: string) => sparseError(problem, name, paths[somewhere.file]!);
  const missing = partSuffixes.find((suffix) => parts[suffix] === undefined);
  if (missing !== undefined) throw fail(`${module}.${missing} is missing`);
  const { compressed, bitmask, shape, row_offsets: rowOffsets } = parts as Required<Parts>;
  const [rows, columns] = readShape(files, paths, shape, name) as [number, number];
  if (!isFloatDType(compressed.dtype) || compressed.shape.length !== 1) {
    throw fail(`compressed is ${compressed.dtype} [${compressed.shape}]; a list of BF16, F16 or F32 was expected`);
  }
  if (bitmask.dtype !== 'U8' || !sameShape(bitmask.shape, [rows, maskBytes(columns)])) {
    throw fail(
      `bitmask is ${bitmask.dtype} [${bitmask.shape}], but shape [${rows}, ${columns}] needs U8 [${[rows, maskBytes(columns)]}]`,
    );
  }
  if (rowOffsets.dtype !== 'I64' || !sameShape(rowOffsets.shape, [rows])) {
    throw fail(`row_offsets is ${rowOffsets.dtype} [${rowOffsets.shape}], but ${rows} rows need I64 [${rows}]`);
  }
  if (compressed.shape[0]! > rows * columns) {
    throw fail(
      `compressed has ${compressed.shape[0]} elements, but shape [${rows}, ${columns}] has only ${rows * columns}`,
    );
  }
  return {
    kind: 'bitmask',
    name,
    dtype: compressed.dtype,
    shape: [rows, columns],
    values: rangeOf(compressed),
    bitmask: rangeOf(bitmask),
    rowOffsets: rangeOf(rowOffsets),
  };
}

/** The numbers in a stored `.shape` tensor: two for a matrix, three for a fused tensor. */
function readShape(
  files: readonly NativeSafetensorsFile[],
  paths: readonly string[],
  shape: Located,
  name: string,
): number[] {
  const path = paths[shape.file]!;
  const rank = shape.shape[0];
  if (shape.dtype !== 'I64' || shape.shape.length !== 1 || (rank !== 2 && rank !== 3)) {
    throw sparseError(`shape is ${shape.dtype} [${shape.shape}]; I64 [2] or [3] was expected`, name, path);
  }
  const file = files[shape.file]!;
  const bytes = callNative(() => file.read(shape.begin, shape.end), { file: path });
  const numbers = Array.from(new BigInt64Array(bytes.buffer), Number);
  // Bounds the product too: no number in a sound file is above the count of bits in its mask.
  if (
    numbers.some((n) => !Number.isSafeInteger(n) || n < 0) ||
    !Number.isSafeInteger(numbers.reduce((a, b) => a * b, 1))
  ) {
    throw sparseError(`shape holds [${numbers}]`, name, path);
  }
  return numbers;
}

function rangeOf({ file, begin, end }: ByteRange): ByteRange {
  return { file, begin, end };
}

function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((n, i) => n === b[i]);
}

export function sparseError(problem: string, tensor: string, file: string): EspalierError {
  return new EspalierError('SPARSE', `${file}: tensor ${JSON.stringify(tensor)}: ${problem}`, { file, tensor });
}

/** Bytes that a matrix of this shape takes in this layout, with an allowance for what its entries add to the header. */
export function bitmaskBytes(dtype: DType, rows: number, columns: number, kept: number): number {
  const headerEntries = 400;
  return tensorBytes(dtype, [kept]) + rows * maskBytes(columns) + rows * 8 + 16 + headerEntries;
}

export function elementBytes(tensor: BitmaskTensor): 2 | 4 {
  if (!isFloatDType(tensor.dtype))
    throw new EspalierError('INTERNAL', `bitmask of ${tensor.dtype}`, { tensor: tensor.name });
  return bytesOf(tensor.dtype);
}
