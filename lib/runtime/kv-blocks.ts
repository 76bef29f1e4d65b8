/** The blocks of the paged KV cache: who uses them, and which hold the beginning of a text that may come again. */
import { EspalierError } from '../errors.ts';

/** Tokens in a block of the KV cache; the native constant kKvBlock. */
export const KV_BLOCK = 16;

/**
 * A full block whose tokens, with all before them, are known by a key can be shared: by sequences that run, and, until the
 * block is needed for something else, by later ones.
 */
export class KvBlockPool {
  readonly size: number;
  /** Blocks that hold nothing of use. */
  readonly #empty: number[];
  /** Known blocks that no sequence uses, the longest unused first. */
  readonly #idle = new Set<number>();
  /** Sequences that use a block. */
  readonly #users: Uint32Array;
  readonly #blockOf = new Map<string, number>();
  readonly #keyOf: (string | undefined)[];

  constructor(size: number) {
    this.size = size;
    // The lowest block is handed out first, so that a cache grows through memory in order.
    this.#empty = Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#users = new Uint32Array(size);
    this.#keyOf = new Array(size);
  }

  /** Tokens that there is room for. */
  get tokens(): number {
    return this.size * KV_BLOCK;
  }

  /** Blocks that no sequence uses. */
  get free(): number {
    return this.#empty.length + this.#idle.size;
  }

  /** Blocks for a sequence to fill. @throws CONTEXT_FULL if fewer than `count` are free; none is taken then. */
  take(count: number): number[] {
    if (count > this.free) {
      throw new EspalierError(
        'CONTEXT_FULL',
        `the KV cache has room for ${this.free * KV_BLOCK} more tokens, ${count * KV_BLOCK} are needed; ` +
          'load the model with a larger kvTokens',
      );
    }
    return Array.from({ length: count }, () => {
      const block = this.#empty.pop() ?? this.#forgetOldest();
      this.#users[block] = 1;
      return block;
    });
  }

  /** The block known by a key, for one more sequence to read. */
  share(key: string): number | undefined {
    const block = this.#blockOf.get(key);
    if (block === undefined) return undefined;
    this.#idle.delete(block);
    this.#users[block]!++;
    return block;
  }

  /** Makes a filled block known. Of two with the same key the first stays. */
  publish(block: number, key: string): void {
    if (this.#blockOf.has(key)) return;
    this.#blockOf.set(key, block);
    this.#keyOf[block] = key;
  }

  /** A sequence no longer uses these. */
  release(blocks: readonly number[]): void {
    // A text's last block goes first: without those before it, it is of no use.
    for (const block of blocks.toReversed()) {
      if (--this.#users[block]! > 0) continue;
      if (this.#keyOf[block] === undefined) this.#empty.push(block);
      else this.#idle.add(block);
    }
  }

  #forgetOldest(): number {
    const [block] = this.#idle;
    if (block === undefined) throw new Error('unreachable: no block is free');
    this.#idle.delete(block);
    this.#blockOf.delete(this.#keyOf[block]!);
    this.#keyOf[block] = undefined;
    return block;
  }
}

/** The blocks of one sequence, which grow with it. */
export class KvSequence {
  readonly #pool: KvBlockPool;
  #blocks: number[] = [];

  constructor(pool: KvBlockPool) {
    this.#pool = pool;
  }

  /** Blocks that positions 0 … tokens − 1 need beyond those it has. */
  missing(tokens: number): number {
    return Math.max(0, Math.ceil(tokens / KV_BLOCK) - this.#blocks.length);
  }

  /** The block table for positions 0 … tokens − 1, extended as needed. @throws CONTEXT_FULL */
  table(tokens: number): Int32Array {
    this.#blocks.push(...this.#pool.take(this.missing(tokens)));
    return Int32Array.from(this.#blocks);
  }

  /** Starts an empty sequence with what is known of a text, by the keys of its full blocks. Returns the tokens found. */
  reuse(keys: readonly string[]): number {
    for (const key of keys) {
      const block = this.#pool.share(key);
      if (block === undefined) break;
      this.#blocks.push(block);
    }
    return this.#blocks.length * KV_BLOCK;
  }

  /** Makes its block number `index`, which is filled, known. */
  publish(index: number, key: string): void {
    this.#pool.publish(this.#blocks[index]!, key);
  }

  release(): void {
    this.#pool.release(this.#blocks);
    this.#blocks = [];
  }
}
