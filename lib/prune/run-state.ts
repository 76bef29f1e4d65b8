/**
 * What a pruning run leaves in its partial folder to be resumed: `.espalier-run/state.json`, rewritten atomically after
 * each layer, and the hidden states that the next layer starts from. A state is used only if it belongs to the same run
 * (same model, recipe, calibration tokens and version) and every file it names has the bytes that it says.
 */
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { writeFileAtomic } from '../checkpoint/atomic-file.ts';
import { readJsonFile } from '../checkpoint/json-file.ts';
import { EspalierError } from '../errors.ts';
import type { LayerReport } from './report.ts';

const folderName = '.espalier-run';
const version = 2;

export interface FileRecord {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

export interface ShardRecord extends FileRecord {
  readonly tensors: readonly { readonly name: string; readonly byteLength: number }[];
}

export interface LayerRecord {
  readonly shard: ShardRecord;
  readonly report: LayerReport;
}

interface State {
  readonly version: number;
  readonly run: string;
  readonly layers: LayerRecord[];
  /** What each stage decided for the whole model. */
  readonly prepared: readonly unknown[];
  /** Hidden states that layer `layers.length` reads; absent where the method needs none. */
  readonly hidden?: FileRecord;
}

export class RunState {
  readonly #partial: string;
  readonly #run: string;
  readonly layers: LayerRecord[] = [];
  /** What each stage decided for the whole model; undefined before it has. Durable with the first layer. */
  prepared: readonly unknown[] | undefined;
  #isOurs = false;

  /** `run` identifies everything that decides the result. */
  constructor(partial: string, run: string) {
    this.#partial = partial;
    this.#run = run;
  }

  /** Whether the partial folder belongs to this run and holds no finished layer. */
  get isWorthless(): boolean {
    return this.#isOurs && this.layers.length === 0;
  }

  /** Path of the hidden states that a layer reads. */
  hiddenPath(layer: number): string {
    return join(this.#partial, folderName, `hidden-${layer}.f32`);
  }

  /**
   * Takes up what an earlier run left. Returns why nothing could be used, or undefined if it could.
   * @throws RESUME if it belongs to another run
   */
  async resume(): Promise<string | undefined> {
    const path = this.#statePath;
    if (!existsSync(path)) return 'it had finished no layer';
    const state = readState(path);
    if (state === undefined) return 'its state file is damaged';
    if (state.version !== version || state.run !== this.#run) {
      throw new EspalierError(
        'RESUME',
        `the unfinished run in ${this.#partial} is of another model, recipe, calibration set or version; ` +
          'repeat its options to resume it, or pass --overwrite to discard it',
        { file: path },
      );
    }
    const files = [...state.layers.map(({ shard }) => join(this.#partial, shard.name))];
    const records: FileRecord[] = state.layers.map(({ shard }) => shard);
    if (state.hidden !== undefined) {
      files.push(join(this.#partial, folderName, state.hidden.name));
      records.push(state.hidden);
    }
    for (const [i, file] of files.entries()) {
      if (!(await matches(file, records[i]!))) return `${file} is missing or damaged`;
    }
    this.layers.push(...state.layers);
    this.prepared = state.prepared;
    this.#isOurs = true;
    return undefined;
  }

  /** Starts from nothing: what another recipe left in the folder must not end up in the output. */
  reset(): void {
    for (const name of readdirSync(this.#partial)) rmSync(join(this.#partial, name), { recursive: true, force: true });
    mkdirSync(join(this.#partial, folderName));
    this.layers.length = 0;
    this.prepared = undefined;
    this.#isOurs = true;
  }

  /** Makes a finished layer durable; its files are on the disk already. Older hidden states are removed. */
  async add(layer: LayerRecord, hasHidden: boolean): Promise<void> {
    this.layers.push(layer);
    const next = this.layers.length;
    const hidden = hasHidden ? await recordOf(this.hiddenPath(next), `hidden-${next}.f32`) : undefined;
    const { layers, prepared = [] } = this;
    const state: State = { version, run: this.#run, layers, prepared, ...(hidden === undefined ? {} : { hidden }) };
    await writeFileAtomic(this.#statePath, sealed(state));
    rmSync(this.hiddenPath(next - 1), { force: true });
  }

  /** Removes from a finished output what only a resumed run would need. */
  static clear(output: string): void {
    rmSync(join(output, folderName), { recursive: true, force: true });
  }

  get #statePath(): string {
    return join(this.#partial, folderName, 'state.json');
  }
}

/** Undefined unless the file is exactly as it was written: other spellings of the same numbers are damage too. */
function readState(path: string): State | undefined {
  try {
    const { text, value } = readJsonFile(path, 'RESUME', 2 ** 30);
    const state = value.state as State;
    return text === sealed(state) ? state : undefined;
  } catch {
    return undefined;
  }
}

/** The state file's text: the state and its hash. */
function sealed(state: State): string {
  const json = JSON.stringify(state);
  const sha256 = createHash('sha256').update(json).digest('hex');
  return `{"sha256":"${sha256}","state":${json}}`;
}

export async function recordOf(path: string, name: string): Promise<FileRecord> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, { highWaterMark: 2 ** 20 }), hash);
  return { name, bytes: statSync(path).size, sha256: hash.digest('hex') };
}

async function matches(path: string, record: FileRecord): Promise<boolean> {
  const found = statSync(path, { throwIfNoEntry: false });
  return found?.size === record.bytes && (await recordOf(path, record.name)).sha256 === record.sha256;
}
