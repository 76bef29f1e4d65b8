/** Constrained answers: which tokens may come next so that the whole has the form that was asked for. */
import { EspalierError } from '../errors.ts';
import { spellBytes } from '../tokenizer/token-bytes.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type AnswerFormat, sourceOf } from './format.ts';
import { GrammarThread, type GrammarVocabulary, ThreadLost } from './thread.ts';

/** A grammar as the library takes it. */
export type GrammarSource =
  | { readonly kind: 'schema'; readonly schema: string; readonly strict: boolean; readonly whitespace: number }
  | { readonly kind: 'regex'; readonly pattern: string }
  | { readonly kind: 'grammar'; readonly grammar: string }
  | {
      readonly kind: 'tagged';
      readonly begin: string;
      readonly tags: readonly {
        readonly begin: string;
        readonly schema: string;
        readonly strict: boolean;
        readonly end: string;
      }[];
      readonly separator: string;
      readonly end: string;
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
 * answer with it. One that does so later ends the answers of that grammar; the others go on in another thread.
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
   * @param specialTokens Those whose names the format's text may have.
   * @throws USAGE with the field `format` for a form that cannot be kept to, TOKENIZER for a model whose tokens have no bytes
   * of their own, or that has no end token
   */
  async start(format: AnswerFormat, specialTokens: readonly string[] = []): Promise<Matcher> {
    const source = sourceOf(format);
    const grammar = JSON.stringify(source);
    this.#vocabulary ??= this.#readVocabulary();
    // It starts while the grammar is checked.
    this.#serving();
    await this.#check(source, grammar);
    const matcher = ++this.#matchers;
    const tokens: number[] = [];
    const begin = async () => {
      const thread = this.#serving();
      const call = { kind: 'start', matcher, source, specialTokens, tokens } as const;
      await thread.call(call, grammar, compileMilliseconds);
      return thread;
    };
    let thread: GrammarThread | undefined = await this.#serve(grammar, begin);
    const ask = async (token: number | undefined) => {
      try {
        thread ??= await begin();
        return await thread.call({ kind: 'next', matcher, token }, grammar, stepMilliseconds);
      } catch (error) {
        thread = undefined;
        throw error;
      }
    };
    return {
      next: async (token) => {
        const mask = await this.#serve(grammar, () => ask(token));
        if (token !== undefined) tokens.push(token);
        if (mask?.some((word) => word !== 0)) return mask;
        throw new EspalierError('TOKENIZER', 'no token of the vocabulary goes on with this answer in its format', {
          field: 'format',
        });
      },
      end: () => void thread?.call({ kind: 'end', matcher }, grammar, stepMilliseconds).catch(() => {}),
    };
  }

  dispose(): void {
    this.#checker?.end();
    this.#server?.end();
  }

  #serving(): GrammarThread {
    if (this.#server === undefined || this.#server.isOver) this.#server = new GrammarThread(this.#vocabulary!);
    return this.#server;
  }

  async #check(source: GrammarSource, grammar: string): Promise<void> {
    if (this.#known.has(grammar)) return;
    try {
      await again(grammar, () => {
        if (this.#checker === undefined || this.#checker.isOver) this.#checker = new GrammarThread(this.#vocabulary!);
        return this.#checker.call({ kind: 'compile', source }, grammar, compileMilliseconds);
      });
    } catch (error) {
      throw new EspalierError('USAGE', `format cannot be kept to: ${(error as Error).message.slice(0, 300)}`, {
        field: 'format',
        cause: error,
      });
    }
    this.#known.add(grammar);
    const [oldest] = this.#known;
    if (this.#known.size > maxKnown && oldest !== undefined) this.#known.delete(oldest);
  }

  async #serve<T>(grammar: string, call: () => Promise<T>): Promise<T> {
    try {
      return await again(grammar, call);
    } catch (error) {
      throw new EspalierError('INTERNAL', `the grammar failed: ${(error as Error).message}`, { cause: error });
    }
  }

  #readVocabulary(): GrammarVocabulary {
    const tokenizer = this.#tokenizer;
    const fail = (why: string) => new EspalierError('TOKENIZER', `format: ${why}`, { field: 'format' });
    if (tokenizer === undefined) throw fail('the model has no tokenizer.json');
    if (this.#endTokens.length === 0) throw fail('the model has no end token, with which an answer could end');
    const specialTokens: { id: number; name: string }[] = [];
    const tokens = Array.from({ length: this.#vocabularySize }, (_, id) => {
      const name = tokenizer.piece(id);
      if (name === undefined || this.#endTokens.includes(id)) return '';
      if (tokenizer.isSpecial(id)) specialTokens.push({ id, name });
      const bytes = tokenizer.bytes(id);
      if (bytes === undefined) throw fail(`${tokenizer.file} does not say which bytes its tokens stand for`);
      return spellBytes(bytes);
    });
    return { tokens, endTokens: this.#endTokens, specialTokens };
  }
}

/** Does what a thread was lost over once more, unless that was because of this grammar, or nobody wants threads any more. */
async function again<T>(grammar: string, call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof ThreadLost)) throw error;
      if (error.culprit === undefined || error.culprit === grammar) throw error.cause;
    }
  }
}
