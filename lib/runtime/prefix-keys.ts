/** Keys by which full blocks of the KV cache are known: each stands for its tokens and all tokens before them. */
import { createHash } from 'node:crypto';
import { KV_BLOCK } from './kv-blocks.ts';

export class PrefixKeys {
  readonly #keys: string[] = [];

  /** The keys of the full blocks among the first `tokens` tokens. */
  upTo(ids: readonly number[], tokens: number): readonly string[] {
    const count = Math.floor(tokens / KV_BLOCK);
    while (this.#keys.length < count) {
      const block = this.#keys.length;
      const hash = createHash('sha256').update(this.#keys[block - 1] ?? '');
      hash.update(Int32Array.from(ids.slice(block * KV_BLOCK, (block + 1) * KV_BLOCK)));
      this.#keys.push(hash.digest('base64'));
    }
    return this.#keys.slice(0, count);
  }
}
