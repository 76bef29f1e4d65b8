import { EspalierError } from '../errors.ts';
import { checkModel, type Fail } from './definition-model.ts';
import { isObject, type JsonObject } from './json.ts';
import { type Spelling, spellingOf } from './token-bytes.ts';

/** One entry of `added_tokens`: text that is cut out before the model sees it. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
}

/** tokenizer.json after every check, and with the parts rewritten that the library would run slowly or not exactly. */
export interface TokenizerDefinition {
  readonly json: object;
  readonly pieces: ReadonlyMap<string, number>;
  readonly addedTokens: readonly AddedToken[];
  /** Whether decoding runs a regular expression of the file. */
  readonly decodesByRegex: boolean;
  readonly spelling: Spelling | undefined;
}

/** Largest id accepted; the largest vocabularies in use have 2^18 pieces. */
const maxId = 2 ** 24 - 1;
const maxDepth = 100;

/** The split of GPT-2, in the syntax whose `\s` is Unicode's White_Space, as the file format defines it. */
const gpt2Split = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/** A run of SentencePiece's word marks with the word after it. */
const wordMarkSplit = { type: 'Split', pattern: { Regex: '▁+[^▁]*|[^▁]+' }, behavior: 'Isolated', invert: false };

/**
 * Checks the parsed tokenizer.json and makes it ready for the library.
 * Two parts are rewritten, neither changing a single id: GPT-2's split is spelled out, since JavaScript's `\s` differs
 * from Unicode's, and text of a SentencePiece model is cut into words where no piece of its vocabulary spans two, which
 * makes long texts linear instead of one word of a million characters.
 * @throws EspalierError `TOKENIZER` naming the file, the field and what is allowed.
 */
export function tokenizerDefinition(value: unknown, file: string): TokenizerDefinition {
  const fail: Fail = (field, found) => {
    throw new EspalierError(
      'TOKENIZER',
      `${file}: ${field} ${found}; copy tokenizer.json from the original model again`,
      { file, field },
    );
  };
  if (!isObject(value)) return fail('the document', 'is not a JSON object');
  const { model, pieces } = checkModel(value.model, maxId, fail);
  const addedTokens = checkAddedTokens(value.added_tokens ?? [], pieces, fail);
  for (const token of addedTokens) pieces.set(token.content, token.id);
  checkPostProcessor(value.post_processor, pieces, fail);
  walk(value.pre_tokenizer, fail, (part) => {
    const length = part.length;
    if (part.type === 'FixedLength' && !(Number.isSafeInteger(length) && (length as number) > 0)) {
      fail('pre_tokenizer.length', `is ${JSON.stringify(length)}, it must be a positive integer`);
    }
  });
  let decodesByRegex = false;
  walk(value.decoder, fail, (part) => {
    decodesByRegex ||= isObject(part.pattern) && 'Regex' in part.pattern;
  });
  const json = {
    ...value,
    model,
    added_tokens: value.added_tokens ?? [],
    normalizer: value.normalizer ?? null,
    pre_tokenizer: preTokenizer(value.pre_tokenizer ?? null, model, pieces),
    post_processor: value.post_processor ?? null,
    decoder: value.decoder ?? null,
  };
  return { json, pieces, addedTokens, decodesByRegex, spelling: spellingOf(value.decoder) };
}

function checkAddedTokens(value: unknown, pieces: ReadonlyMap<string, number>, fail: Fail): AddedToken[] {
  if (!Array.isArray(value)) return fail('added_tokens', 'is not a list');
  const byId = new Map<number, string>();
  for (const [piece, id] of pieces) byId.set(id, piece);
  return value.map((token: unknown, i) => {
    const field = `added_tokens[${i}]`;
    if (!isObject(token)) return fail(field, 'is not an object');
    const { id, content, special } = token;
    if (typeof content !== 'string' || content === '')
      return fail(`${field}.content`, 'is not a text of one or more characters');
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) > maxId) {
      return fail(`${field}.id`, `is ${JSON.stringify(id)}, it must be an integer from 0 to ${maxId}`);
    }
    const holder = byId.get(id as number);
    if (holder !== undefined && holder !== content) {
      return fail(`${field}.id`, `gives id ${id} to ${JSON.stringify(content)}, but ${JSON.stringify(holder)} has it`);
    }
    byId.set(id as number, content);
    return { id: id as number, content, special: special === true };
  });
}

/** The library puts the template's own names into the ids, so each must be a piece and stand for just itself. */
function checkPostProcessor(value: unknown, pieces: ReadonlyMap<string, number>, fail: Fail): void {
  walk(value, fail, (part) => {
    const name = isObject(part.SpecialToken) ? part.SpecialToken.id : undefined;
    if (name !== undefined && !(typeof name === 'string' && pieces.has(name))) {
      fail('post_processor', `asks for the special token ${JSON.stringify(name)}, which is not in the vocabulary`);
    }
    if (part.type !== 'TemplateProcessing' || !isObject(part.special_tokens)) return;
    for (const [token, entry] of Object.entries(part.special_tokens)) {
      const ids = isObject(entry) ? entry.ids : undefined;
      if (!(Array.isArray(ids) && ids.length === 1 && ids[0] === pieces.get(token))) {
        fail(
          'post_processor.special_tokens',
          `maps ${JSON.stringify(token)} to ${JSON.stringify(ids)}, which is not its id`,
        );
      }
    }
  });
}

function preTokenizer(value: unknown, model: JsonObject, pieces: ReadonlyMap<string, number>): unknown {
  const sequence = (...pretokenizers: unknown[]) => ({ type: 'Sequence', pretokenizers });
  if (mergesStayInWords(model, pieces)) {
    if (value === null) return wordMarkSplit;
    if (isObject(value) && value.type === 'Metaspace' && value.split === false) return sequence(value, wordMarkSplit);
  }
  return replaceParts(value, (part) => {
    if (part.type !== 'ByteLevel' || part.use_regex === false || part.add_prefix_space === true) return part;
    const split = { type: 'Split', pattern: { Regex: gpt2Split }, behavior: 'Isolated', invert: false };
    return sequence(split, { ...part, use_regex: false });
  });
}

/** Whether no merge joins the end of a word with the mark that begins the next. */
function mergesStayInWords(model: JsonObject, pieces: ReadonlyMap<string, number>): boolean {
  if (model.type !== 'BPE' || model.ignore_merges === true || !pieces.has('▁')) return false;
  return (model.merges as (string | [string, string])[]).every((merge) => {
    const [left, right] = typeof merge === 'string' ? (merge.split(' ') as [string, string]) : merge;
    return !/[^▁]▁/u.test(left + right);
  });
}

function replaceParts(value: unknown, replace: (part: JsonObject) => unknown): unknown {
  if (!isObject(value)) return value;
  const list = value.pretokenizers;
  if (!Array.isArray(list)) return replace(value);
  return { ...value, pretokenizers: list.map((part: unknown) => replaceParts(part, replace)) };
}

/** Visits every object in the parts of a pipeline. */
function walk(value: unknown, fail: Fail, visit: (part: JsonObject) => void, depth = 0): void {
  if (typeof value !== 'object' || value === null) return;
  if (depth > maxDepth) fail('a part', `is nested more than ${maxDepth} deep`);
  if (isObject(value)) visit(value);
  for (const item of Object.values(value)) walk(item, fail, visit, depth + 1);
}
