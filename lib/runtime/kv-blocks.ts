import { EspalierError } from '../errors.ts';

/** Tokens in a block of the KV cache; the native constant kKvBlock. */
export const KV_BLOCK = 16;

/** Hands out the blocks of the paged KV cache. */
export class KvBlockPool {
  readonly size: number;
  readonly #free: number[];

  constructor(size: number) {
    this.size = size;
    // The lowest block is handed out first, so that a cache grows through memory in order.
    this.#free = Array.from({ length: size }, (_, i) => size - 1 - i);
  }

  get free(): number {
    return this.#free.length;
  }

  /** @throws CONTEXT_FULL if fewer than `count` blocks are free; none is taken then. */
  take(count: number): number[] {
    if (count > this.#free.length) {
      throw new EspalierError(
        'CONTEXT_FULL',
        `the KV cache has room for ${this.#free.length * KV_BLOCK} more tokens, ${count * KV_BLOCK} are needed; ` +
          'load the model with a larger kvTokens',
      );
    }
    return this.#free.splice(this.#free.length - count).reverse();
  }

  release(blocks: readonly number[]): void {
    this.#free.push(...blocks.toReversed());
  }
}

/** The blocks of one sequence, which grow with it. */
export class KvSequence {
  readonly #pool: KvBlockPool;
  #blocks: number[] = [];

  constructor(pool: KvBlockPool) {
    this.#pool = pool;
  }

  /** The block table for positions 0 … tokens − 1, extended as needed. */
  table(tokens: number): Int32Array {
    const missing = Math.ceil(tokens / KV_BLOCK) - this.#blocks.length;
    if (missing > 0) this.#blocks.push(...this.#pool.take(missing));
    return Int32Array.from(this.#blocks);
  }

  release(): void {
    this.#pool.release(this.#blocks);
    this.#blocks = [];
  }
}
