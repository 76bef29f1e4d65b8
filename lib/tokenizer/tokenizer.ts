import { join } from 'node:path';
import { TextDecoder } from 'node:util';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { EspalierError } from '../errors.ts';
import { type TokenizerDefinition, tokenizerDefinition } from './definition.ts';
import { isObject, type JsonObject, readJson } from './json.ts';
import { runWithin } from './time-limit.ts';
import { bytesOfPiece, type Spelling } from './token-bytes.ts';

const loadMilliseconds = 30_000;

/** What is used of the library, whose own declarations do not resolve under `nodenext`. */
interface Library {
  readonly decoder: LibraryDecoder | null;
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[] };
  decode(ids: number[], options: { clean_up_tokenization_spaces: boolean }): string;
  id_to_token(id: number): string | undefined;
}

interface LibraryDecoder {
  text_decoder?: TextDecoder;
  readonly decoders?: readonly LibraryDecoder[];
}

/**
 * tokenizer.json of a checkpoint, with the names of its begin and end tokens from tokenizer_config.json.
 * Truncation and padding that the file may ask for are ignored: a text gives all its tokens and nothing else.
 */
export class Tokenizer {
  /** The tokenizer.json that this was read from. */
  readonly file: string;
  /** One more than the highest id. A model may have more rows than that, never fewer. */
  readonly vocabularySize: number;
  readonly bosToken: string | undefined;
  readonly eosToken: string | undefined;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  /** Finds the names of special tokens in a text; undefined where there are none. */
  readonly specialPattern: RegExp | undefined;
  readonly #library: Library;
  readonly #ids: ReadonlyMap<string, number>;
  readonly #specialIds: ReadonlySet<number>;
  readonly #addedIds: ReadonlySet<number>;
  readonly #decodesByRegex: boolean;
  readonly #spelling: Spelling | undefined;

  private constructor(file: string, definition: TokenizerDefinition, config: JsonObject) {
    this.file = file;
    this.#ids = definition.pieces;
    this.#specialIds = new Set(definition.addedTokens.filter((token) => token.special).map((token) => token.id));
    this.#addedIds = new Set(definition.addedTokens.map((token) => token.id));
    this.#decodesByRegex = definition.decodesByRegex;
    this.#spelling = definition.spelling;
    this.specialPattern = patternOf(definition.addedTokens.filter((token) => token.special));
    let highest = -1;
    for (const id of definition.pieces.values()) if (id > highest) highest = id;
    this.vocabularySize = highest + 1;
    this.bosToken = tokenText(config.bos_token);
    this.eosToken = tokenText(config.eos_token);
    this.bosId = this.bosToken === undefined ? undefined : this.tokenId(this.bosToken);
    this.eosId = this.eosToken === undefined ? undefined : this.tokenId(this.eosToken);
    this.#library = this.#guard(
      loadMilliseconds,
      'cannot be used',
      () => new HuggingFaceTokenizer(definition.json, {}) as Library,
    );
    keepByteOrderMarks(this.#library.decoder);
  }

  /**
   * Reads tokenizer.json and, if it is there, tokenizer_config.json of a checkpoint folder.
   * @throws EspalierError `TOKENIZER` if the file is missing or cannot be used, `IO` if it cannot be read.
   */
  static async load(directory: string): Promise<Tokenizer> {
    const tokenizer = await Tokenizer.find(directory);
    if (tokenizer !== undefined) return tokenizer;
    const file = join(directory, 'tokenizer.json');
    throw new EspalierError(
      'TOKENIZER',
      `${file} does not exist; copy it from the original model, or use token ids instead of text`,
      { file },
    );
  }

  /** Like `load`, but `undefined` where the folder has no tokenizer.json: such a checkpoint works with token ids. */
  static async find(directory: string): Promise<Tokenizer | undefined> {
    const file = join(directory, 'tokenizer.json');
    const value = await readJson(file);
    if (value === undefined) return undefined;
    const configFile = join(directory, 'tokenizer_config.json');
    const config = (await readJson(configFile)) ?? {};
    if (!isObject(config)) {
      throw new EspalierError('TOKENIZER', `${configFile} is not a JSON object`, { file: configFile });
    }
    return new Tokenizer(file, tokenizerDefinition(value, file), config);
  }

  /**
   * @param options.addSpecialTokens Add what the tokenizer adds around a text, usually a begin token. @default true
   * @throws EspalierError `TOKENIZER` when the pattern in the file does not end on this text.
   */
  encode(text: string, options: { addSpecialTokens?: boolean } = {}): Uint32Array {
    const milliseconds = 5_000 + text.length / 10;
    const { ids } = this.#guard(milliseconds, 'cannot encode this text', () =>
      this.#library.encode(text, { add_special_tokens: options.addSpecialTokens ?? true }),
    );
    return Uint32Array.from(ids);
  }

  /**
   * Ids that stand for no piece give no text; bytes that are not UTF-8 give U+FFFD.
   * @param options.skipSpecialTokens Leave out begin, end and other special tokens. @default false
   */
  decode(ids: Uint32Array | readonly number[], options: { skipSpecialTokens?: boolean } = {}): string {
    const known: number[] = [];
    for (const id of ids) {
      if (this.#library.id_to_token(id) === undefined) continue;
      if (options.skipSpecialTokens === true && this.#specialIds.has(id)) continue;
      known.push(id);
    }
    if (known.length === 0) return '';
    const decode = () => this.#library.decode(known, { clean_up_tokenization_spaces: false });
    return this.#decodesByRegex ? this.#guard(5_000 + known.length, 'cannot decode these ids', decode) : decode();
  }

  /** The id of a piece as the vocabulary spells it (for example `<s>` or `Ġthe`). */
  tokenId(piece: string): number | undefined {
    return this.#ids.get(piece);
  }

  /** The piece of an id as the vocabulary spells it. */
  piece(id: number): string | undefined {
    return this.#library.id_to_token(id);
  }

  /**
   * The bytes of an id's text, which need not be whole characters; those of special tokens spell their names.
   * @returns `undefined` for an id that stands for no piece, and where the tokenizer's pieces have no bytes of their own.
   */
  bytes(id: number): Uint8Array | undefined {
    const piece = this.piece(id);
    if (piece === undefined) return undefined;
    if (this.#addedIds.has(id)) return new TextEncoder().encode(piece);
    return this.#spelling === undefined ? undefined : bytesOfPiece(piece, this.#spelling);
  }

  /** Whether an id is a special token, which `skipSpecialTokens` leaves out. */
  isSpecial(id: number): boolean {
    return this.#specialIds.has(id);
  }

  #guard<T>(milliseconds: number, problem: string, task: () => T): T {
    const { file } = this;
    const fail = (why: string, cause?: unknown) =>
      new EspalierError('TOKENIZER', `${file} ${problem}: ${why}; check it against the original model's`, {
        file,
        cause,
      });
    try {
      return runWithin(milliseconds, task, () => fail('its patterns take too long'));
    } catch (error) {
      if (error instanceof EspalierError) throw error;
      throw fail(error instanceof Error ? error.message : String(error), error);
    }
  }
}

/** The library's byte pieces lose U+FEFF where a run of them begins with it; the file format keeps it. */
function keepByteOrderMarks(decoder: LibraryDecoder | null): void {
  if (decoder?.text_decoder !== undefined) decoder.text_decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  for (const part of decoder?.decoders ?? []) keepByteOrderMarks(part);
}

/** Of two names that begin alike the longer is found. */
function patternOf(tokens: readonly { readonly content: string }[]): RegExp | undefined {
  if (tokens.length === 0) return undefined;
  const names = tokens.map(({ content }) => content).sort((a, b) => b.length - a.length);
  return new RegExp(names.map((name) => name.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&')).join('|'), 'g');
}

/** A token of tokenizer_config.json: its text, or an object with `content`. */
function tokenText(value: unknown): string | undefined {
  const text = isObject(value) ? value.content : value;
  return typeof text === 'string' ? text : undefined;
}
