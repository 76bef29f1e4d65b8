/** A checkpoint folder opened for reading, dense or saved sparse, in one file or in shards. */
import { lstatSync, readdirSync, statSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import { EspalierError, fromSystemError } from '../errors.ts';
import { callNative, type NativeSafetensorsFile, native } from '../native.ts';
import { BitmaskSource, FusedSource } from './bitmask-source.ts';
import { type DType, tensorBytes } from './dtype.ts';
import { indexName, type Storage, singleName, storages } from './file-names.ts';
import { type JsonFile, readJsonFile } from './json-file.ts';
import { type PackedWeights, packedTensors, readPackedConfig } from './packed-layout.ts';
import { PackedSource } from './packed-source.ts';
import { checkShards, readShardIndex, type ShardIndex } from './shard-index.ts';
import { isSparseConfig, logicalTensors } from './sparse-layout.ts';
import type { CheckpointTensor, PackedTensor, TensorSource } from './tensor.ts';

const configName = 'config.json';
const maxConfigBytes = 16 * 2 ** 20;

const pickle = /\.(bin|pt|pth|ckpt|pkl)$/i;
const otherWeights =
  /^(pytorch_model.*\.bin(\.index\.json)?|tf_model.*\.h5|flax_model.*\.msgpack)$|\.(pt|pth|ckpt|gguf|onnx)$|\.safetensors(\.index\.json)?$/i;

/**
 * Opens a checkpoint folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists (in a sparse
 * or packed checkpoint both start with `espalier`), and `config.json`. Every header, the index and the layout of sparse tensors are checked here; of the weights nothing is read.
 */
export function openCheckpoint(dir: string): Checkpoint {
  checkFolder(dir);
  const opened: NativeSafetensorsFile[] = [];
  try {
    const { fileNames, index } = findFiles(dir);
    const paths = fileNames.map((name) => join(dir, name));
    for (const path of paths) opened.push(callNative(() => native().SafetensorsFile.open(path), { file: path }));
    if (index !== undefined) checkShards(index, opened);
    const config = readJsonFile(join(dir, configName), 'CONFIG', maxConfigBytes);
    return new Checkpoint(dir, fileNames, opened, config, index);
  } catch (error) {
    for (const file of opened) file.dispose();
    throw error;
  }
}

export class Checkpoint {
  /** Absolute path of the folder. */
  readonly dir: string;
  /** Names of the safetensors files, in the order of `files`. */
  readonly fileNames: readonly string[];
  readonly files: readonly NativeSafetensorsFile[];
  /** config.json as plain JSON. Nothing in it has been checked. */
  readonly config: Readonly<Record<string, unknown>>;
  /** config.json as it stands in the file. */
  readonly configText: string;
  /** `metadata` of the shard index; undefined where there is one file and no index. */
  readonly indexMetadata: Readonly<Record<string, unknown>> | undefined;
  /** How its matrices are stored. */
  readonly storage: Storage;
  /** What the matrices of a packed checkpoint were rounded to; undefined for others. */
  readonly packedWeights: PackedWeights | undefined;
  readonly #tensors: Map<string, CheckpointTensor>;
  readonly #packed: ReadonlyMap<string, PackedTensor>;
  readonly #paths: readonly string[];

  /** @internal Use openCheckpoint. */
  constructor(
    dir: string,
    fileNames: readonly string[],
    files: readonly NativeSafetensorsFile[],
    config: JsonFile,
    index: ShardIndex | undefined,
  ) {
    this.dir = resolve(dir);
    this.fileNames = fileNames;
    this.files = files;
    this.config = config.value;
    this.configText = config.text;
    this.indexMetadata = index?.metadata;
    this.#paths = fileNames.map((name) => join(this.dir, name));
    const configPath = join(this.dir, configName);
    this.packedWeights = readPackedConfig(this.config, configPath);
    const isPacked = this.packedWeights !== undefined;
    this.storage = isPacked ? 'packed' : isSparseConfig(this.config, configPath) ? 'sparse' : 'dense';
    const { tensors, packed } = isPacked
      ? packedTensors(files, this.#paths)
      : { tensors: this.isSparse ? logicalTensors(files, this.#paths) : denseTensors(files), packed: new Map() };
    this.#tensors = tensors;
    this.#packed = packed;
  }

  /** Whether it was saved with `--save sparse`. */
  get isSparse(): boolean {
    return this.storage === 'sparse';
  }

  /** The packed matrices of a tensor, also of one that is stored as its elements beside them; undefined without any. */
  packed(name: string): PackedTensor | undefined {
    return this.#packed.get(name);
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /** How a tensor is stored. Throws `MISMATCH` if there is none of that name. */
  get(name: string): CheckpointTensor {
    const tensor = this.#tensors.get(name);
    if (tensor !== undefined) return tensor;
    throw new EspalierError('MISMATCH', `${this.dir} holds no tensor ${JSON.stringify(name.slice(0, 200))}`, {
      file: this.dir,
      tensor: name,
    });
  }

  /** Names of all tensors; a sparse checkpoint gives those of the dense one. */
  names(): IterableIterator<string> {
    return this.#tensors.keys();
  }

  /** Bytes of all tensors as stored. */
  get storedBytes(): number {
    let bytes = 0;
    for (const file of this.files) for (const { begin, end } of file.tensors) bytes += end - begin;
    return bytes;
  }

  /** Bytes of all tensors as dense ones. */
  get denseBytes(): number {
    let bytes = 0;
    for (const { dtype, shape } of this.#tensors.values()) bytes += tensorBytes(dtype, shape);
    return bytes;
  }

  /** A tensor as a dense one to be read in pieces. Reading throws `CHANGED` or `SPARSE` where the file is at fault. */
  source(name: string): TensorSource {
    const tensor = this.get(name);
    if (tensor.kind === 'bitmask') return this.#bitmask(tensor);
    if (tensor.kind === 'fused')
      return new FusedSource(
        name,
        tensor.experts.map((expert) => this.#bitmask(expert)),
      );
    if (tensor.kind === 'packed') return new PackedSource(tensor, this.files, this.#paths);
    const path = this.#paths[tensor.file]!;
    const file = this.files[tensor.file]!;
    return {
      name,
      dtype: tensor.dtype,
      shape: tensor.shape,
      read: (begin, end) =>
        callNative(() => file.read(tensor.begin + begin, tensor.begin + end), { file: path, tensor: name }),
    };
  }

  /** All bytes of a tensor as a dense one. */
  read(name: string): Uint8Array {
    const source = this.source(name);
    return source.read(0, tensorBytes(source.dtype, source.shape)) as Uint8Array;
  }

  /**
   * Checks bitmasks and row offsets of a sparse checkpoint against each other and throws `SPARSE` naming the tensor.
   * Values are not read. Does nothing for a dense one.
   */
  validate(): void {
    for (const tensor of this.#tensors.values()) {
      if (tensor.kind === 'bitmask') this.#bitmask(tensor).validate();
      if (tensor.kind === 'fused') for (const expert of tensor.experts) this.#bitmask(expert).validate();
    }
  }

  /**
   * Paths, relative to `dir`, of the files that a copy of this checkpoint takes over untouched: all regular files, in
   * subfolders too, but not config.json, not weights in any format (safetensors, their index, pickle, GGUF, ONNX, …), and
   * nothing in folders whose name starts with a point (`.git`, `.cache`).
   */
  otherFiles(): string[] {
    const found: string[] = [];
    const walk = (folder: string) => {
      for (const name of readdirSync(folder)) {
        const path = join(folder, name);
        const stat = statSync(path, { throwIfNoEntry: false });
        if (stat?.isDirectory() && !name.startsWith('.') && !lstatSync(path).isSymbolicLink()) walk(path);
        else if (stat?.isFile() && !otherWeights.test(name) && path !== join(this.dir, configName)) {
          found.push(relative(this.dir, path));
        }
      }
    };
    try {
      walk(this.dir);
    } catch (error) {
      throw fromSystemError(error, 'list', this.dir);
    }
    return found.sort();
  }

  dispose(): void {
    for (const file of this.files) file.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #bitmask(tensor: CheckpointTensor & { kind: 'bitmask' }): BitmaskSource {
    return new BitmaskSource(tensor, this.files, this.#paths);
  }
}

function denseTensors(files: readonly NativeSafetensorsFile[]): Map<string, CheckpointTensor> {
  const tensors = new Map<string, CheckpointTensor>();
  files.forEach((file, index) => {
    for (const tensor of file.tensors) {
      tensors.set(tensor.name, { kind: 'dense', ...tensor, dtype: tensor.dtype as DType, file: index });
    }
  });
  return tensors;
}

function checkFolder(dir: string): void {
  let isFolder: boolean;
  try {
    isFolder = statSync(dir).isDirectory();
  } catch (error) {
    throw fromSystemError(error, 'open the checkpoint', dir);
  }
  if (isFolder) return;
  if (pickle.test(dir)) throw pickleError(dir);
  throw new EspalierError(
    'NOT_A_FILE',
    `${dir} is not a folder. A checkpoint is named by the folder that holds ${configName} and ${singleName('dense')}.`,
    { file: dir },
  );
}

function findFiles(dir: string): { fileNames: string[]; index?: ShardIndex } {
  let names: string[];
  try {
    names = readdirSync(dir);
  } catch (error) {
    throw fromSystemError(error, 'list', dir);
  }
  // Listed by name, so that a dangling link is opened and reported instead of overlooked.
  for (const storage of storages) {
    if (names.includes(singleName(storage))) return { fileNames: [singleName(storage)] };
    if (!names.includes(indexName(storage))) continue;
    const index = readShardIndex(dir, storage);
    return { fileNames: index.shards, index };
  }
  const pickled = names.find((name) => pickle.test(name));
  if (pickled !== undefined) throw pickleError(join(dir, pickled));
  const shards = names.some((name) => name.endsWith('.safetensors'));
  throw new EspalierError(
    'NOT_A_FILE',
    `${dir} holds neither ${singleName('dense')} nor ${indexName('dense')}${shards ? ', which must list the .safetensors files that are there' : ''}`,
    { file: join(dir, shards ? indexName('dense') : singleName('dense')) },
  );
}

function pickleError(file: string): EspalierError {
  return new EspalierError(
    'PICKLE',
    `${file} is a pickle file, which can run code when it is loaded, so Espalier never loads one. Convert it where you trust it: ` +
      `python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('NEW')"`,
    { file },
  );
}
