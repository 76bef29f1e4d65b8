/** Constrained answers: which tokens may come next so that the whole has the form that was asked for. */
import { EspalierError } from '../errors.ts';
import { spellBytes } from '../tokenizer/token-bytes.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type AnswerFormat, sourceOf } from './format.ts';
import { GrammarThread, type GrammarVocabulary } from './thread.ts';

/** A grammar as the library takes it. */
export type GrammarSource =
  | { readonly kind: 'schema'; readonly schema: string; readonly strict: boolean; readonly whitespace: number }
  | { readonly kind: 'regex'; readonly pattern: string }
  | {
      readonly kind: 'tagged';
      readonly tags: readonly {
        readonly begin: string;
        readonly schema: string;
        readonly strict: boolean;
        readonly end: string;
      }[];
      readonly separator: string;
      readonly several: boolean;
      readonly whitespace: number;
    };

const compileMilliseconds = 2_000;
const stepMilliseconds = 1_000;
/** Grammars that need not be checked again. */
const maxKnown = 256;

/** Follows one answer. */
export interface Matcher {
  /**
   * Takes the next token of the answer, none at its beginning.
   * @returns Which tokens may follow: token i if bit i % 32 of word i / 32 is set.
   */
  next(token?: number): Promise<Int32Array>;
  /** To be called once, whatever happened. */
  end(): void;
}

/**
 * The grammars of a model. A new one is compiled in a thread of its own first: what runs on or traps there takes no other
 * answer with it.
 */
export class Grammars {
  readonly #tokenizer: Tokenizer | undefined;
  readonly #endTokens: readonly number[];
  readonly #vocabularySize: number;
  #vocabulary: GrammarVocabulary | undefined;
  #checker: GrammarThread | undefined;
  #server: GrammarThread | undefined;
  readonly #known = new Set<string>();
  #matchers = 0;

  constructor(tokenizer: Tokenizer | undefined, endTokens: readonly number[], vocabularySize: number) {
    this.#tokenizer = tokenizer;
    this.#endTokens = endTokens;
    this.#vocabularySize = vocabularySize;
  }

  /**
   * @throws USAGE with the field `format` for a form that cannot be kept to, TOKENIZER for a model whose tokens have no bytes
   * of their own, or that has no end token
   */
  async start(format: AnswerFormat): Promise<Matcher> {
    const source = sourceOf(format);
    this.#vocabulary ??= this.#readVocabulary();
    if (this.#server === undefined || this.#server.isOver) this.#server = new GrammarThread(this.#vocabulary);
    const server = this.#server;
    await this.#check(source);
    const matcher = ++this.#matchers;
    await this.#ask(() => server.call({ kind: 'start', matcher, source }, compileMilliseconds));
    return {
      next: async (token) => {
        const mask = await this.#ask(() => server.call({ kind: 'next', matcher, token }, stepMilliseconds));
        if (mask?.some((word) => word !== 0)) return mask;
        throw new EspalierError('TOKENIZER', 'no token of the vocabulary goes on with this answer in its format', {
          field: 'format',
        });
      },
      end: () => void server.call({ kind: 'end', matcher }, stepMilliseconds).catch(() => {}),
    };
  }

  dispose(): void {
    this.#checker?.end();
    this.#server?.end();
  }

  async #check(source: GrammarSource): Promise<void> {
    const key = JSON.stringify(source);
    if (this.#known.has(key)) return;
    if (this.#checker === undefined || this.#checker.isOver) this.#checker = new GrammarThread(this.#vocabulary!);
    const checker = this.#checker;
    try {
      await checker.call({ kind: 'compile', source }, compileMilliseconds);
    } catch (error) {
      // After a trap the library is of no more use.
      checker.end();
      throw new EspalierError('USAGE', `format cannot be kept to: ${(error as Error).message.slice(0, 300)}`, {
        field: 'format',
        cause: error,
      });
    }
    this.#known.add(key);
    const [oldest] = this.#known;
    if (this.#known.size > maxKnown && oldest !== undefined) this.#known.delete(oldest);
  }

  async #ask(call: () => Promise<Int32Array | undefined>): Promise<Int32Array | undefined> {
    try {
      return await call();
    } catch (error) {
      throw new EspalierError('INTERNAL', `the grammar failed: ${(error as Error).message}`, { cause: error });
    }
  }

  #readVocabulary(): GrammarVocabulary {
    const tokenizer = this.#tokenizer;
    const fail = (why: string) => new EspalierError('TOKENIZER', `format: ${why}`, { field: 'format' });
    if (tokenizer === undefined) throw fail('the model has no tokenizer.json');
    if (this.#endTokens.length === 0) throw fail('the model has no end token, with which an answer could end');
    const tokens = Array.from({ length: this.#vocabularySize }, (_, id) => {
      if (tokenizer.piece(id) === undefined || tokenizer.isSpecial(id)) return '';
      const bytes = tokenizer.bytes(id);
      if (bytes === undefined) throw fail(`${tokenizer.file} does not say which bytes its tokens stand for`);
      return spellBytes(bytes);
    });
    return { tokens, endTokens: this.#endTokens };
  }
}
