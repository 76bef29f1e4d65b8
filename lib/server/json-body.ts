/** What the body of a request may be: UTF-8, JSON without names twice, of a size that is checked in milliseconds. */
import { HttpError } from './errors.ts';

/** Texts (names among them), lists and objects of a body; numbers are not counted. */
const maxParts = 20_000;
const maxDepth = 64;

/** @throws HttpError 400 */
export function parseJsonBody(bytes: Buffer): unknown {
  const text = decode(bytes);
  checkStructure(text);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new HttpError(400, `the body is not JSON: ${(error as Error).message.slice(0, 200)}`);
  }
}

function decode(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new HttpError(400, 'the body is not UTF-8');
  }
}

const [quote, backslash, colon] = ['"', '\\', ':'].map((character) => character.charCodeAt(0));
const [openBrace, closeBrace, openBracket, closeBracket] = ['{', '}', '[', ']'].map((text) => text.charCodeAt(0));
const blanks = [' ', '\t', '\n', '\r'].map((blank) => blank.charCodeAt(0));

/**
 * Walks over the text without building anything. What is not JSON is left for the parser to find; of JSON, names that stand
 * twice in an object, texts that are no Unicode, and more than can be checked quickly are refused.
 */
function checkStructure(text: string): void {
  /** The names of each open object, undefined for a list. */
  const open: (Set<string> | undefined)[] = [];
  let parts = 0;
  const tooMuch = (what: string) => {
    const field = [...(open[0] ?? [])].at(-1)?.slice(0, 100);
    return new HttpError(400, `the body ${what}`, { param: field ?? null });
  };
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === closeBrace || code === closeBracket) open.pop();
    if (code !== quote && code !== openBrace && code !== openBracket) continue;
    if (++parts > maxParts) throw tooMuch(`has more than ${maxParts} texts, lists and objects`);
    if (code === quote) {
      const end = endOfText(text, i);
      if (end === -1) return;
      checkText(text.slice(i, end + 1), isName(text, end + 1) ? open.at(-1) : undefined);
      i = end;
      continue;
    }
    if (open.length === maxDepth) throw tooMuch(`is nested more than ${maxDepth} deep`);
    open.push(code === openBrace ? new Set() : undefined);
  }
}

/** Where the text that begins at `begin` has its closing quote; -1 if nowhere. */
function endOfText(text: string, begin: number): number {
  for (let end = text.indexOf('"', begin + 1); end !== -1; end = text.indexOf('"', end + 1)) {
    let first = end;
    while (text.charCodeAt(first - 1) === backslash) first--;
    if ((end - first) % 2 === 0) return end;
  }
  return -1;
}

function isName(text: string, after: number): boolean {
  let i = after;
  while (blanks.includes(text.charCodeAt(i))) i++;
  return text.charCodeAt(i) === colon;
}

/** @param names Of the object that it is a name in. */
function checkText(quoted: string, names: Set<string> | undefined): void {
  let content = quoted.slice(1, -1);
  if (content.includes('\\')) {
    try {
      content = JSON.parse(quoted);
    } catch {
      return;
    }
    if (/\p{Surrogate}/u.test(content)) throw new HttpError(400, 'the body has half of a surrogate pair');
  }
  if (names === undefined) return;
  const shown = JSON.stringify(content.slice(0, 100));
  if (names.has(content))
    throw new HttpError(400, `the body has ${shown} twice in one object`, { param: content.slice(0, 100) });
  if (content === '__proto__') throw new HttpError(400, `the body has a field ${shown}`, { param: content });
  names.add(content);
}
