// @ts-check
/**
 * The thread that runs xgrammar, a WebAssembly build without threads of its own. It is asked one thing after the other and
 * gives one reply to each, in order (thread.ts). What a grammar makes it do (run on, trap, use up memory) ends with it.
 * JavaScript, because Node 20 cannot start a thread from TypeScript, which the tests run as it is.
 */
import { parentPort, workerData } from 'node:worker_threads';

/** Grammars that are kept compiled. */
const maxCompiled = 64;
/** Pages of 64 KiB. */
const maxPages = 8192;

// The library says why it refuses a grammar, and which part it passes over, only on the console.
/** @type {string[]} */
const said = [];
console.log = console.warn = console.error = (...words) => void said.push(words.join(' '));

const { prototype } = /** @type {any} */ (globalThis).WebAssembly.Memory;
const { grow } = prototype;
prototype.grow = function (/** @type {number} */ pages) {
  if (this.buffer.byteLength / 65536 + pages > maxPages) throw new RangeError('the grammar needs too much memory');
  return grow.call(this, pages);
};

// The package is a script for pages that calls itself a module: it finds itself by `location`, and leaves a global.
Object.assign(globalThis, { location: { href: import.meta.resolve('@mlc-ai/web-xgrammar') } });
await import('@mlc-ai/web-xgrammar');
/** @type {typeof import('@mlc-ai/web-xgrammar')} */
const xgrammar = /** @type {any} */ (globalThis).xgrammar;

const { tokens, endTokens, specialTokens } = workerData;
const info = await xgrammar.TokenizerInfo.createTokenizerInfo(tokens, 'byte_level', false, tokens.length, endTokens);
const compiler = await xgrammar.GrammarCompiler.createGrammarCompiler(info, false);
/** @type {Map<string, import('@mlc-ai/web-xgrammar').CompiledGrammar>} The longest unused first. */
const compiled = new Map();
/** @type {Map<number, { matcher: import('@mlc-ai/web-xgrammar').GrammarMatcher, forbidden: number[] }>} */
const matchers = new Map();

/**
 * @param {string} schema
 * @param {boolean} strict
 * @param {number} whitespace
 */
const readSchema = (schema, strict, whitespace) =>
  xgrammar.Grammar.fromJSONSchema(schema, true, undefined, undefined, strict, whitespace);

/** @param {import('./grammars.ts').GrammarSource} source */
async function read(source) {
  switch (source.kind) {
    case 'schema':
      return readSchema(source.schema, source.strict, source.whitespace);
    case 'regex':
      return xgrammar.Grammar.fromStructuralTag({ type: 'regex', pattern: source.pattern });
    case 'grammar':
      return xgrammar.Grammar.fromEBNF(source.grammar);
    case 'tagged': {
      const { begin: before, separator, end: behind, several, whitespace } = source;
      const tags = [];
      for (const { begin, schema, strict, end } of source.tags) {
        // A schema inside of a tag would allow whitespace without end.
        const grammar = (await readSchema(schema, strict, whitespace)).toString();
        tags.push({ type: /** @type {const} */ ('tag'), begin, content: { type: 'grammar', grammar }, end });
      }
      const list = /** @type {const} */ ({
        type: 'tags_with_separator',
        tags,
        separator,
        at_least_one: true,
        stop_after_first: !several,
      });
      // The library traps on a list in a tag without an end, and on one in a sequence that goes on behind it.
      const first = /** @type {const} */ ({ type: 'const_string', value: before });
      return xgrammar.Grammar.fromStructuralTag(
        behind === ''
          ? { type: 'sequence', elements: before === '' ? [list] : [first, list] }
          : { type: 'tag', begin: before, content: list, end: behind },
      );
    }
  }
}

/** @param {import('./grammars.ts').GrammarSource} source */
async function compile(source) {
  const key = JSON.stringify(source);
  const known = compiled.get(key);
  compiled.delete(key);
  said.length = 0;
  const grammar = known ?? (await compiler.compileGrammar(await read(source)));
  if (said.length > 0) throw new Error('not all of it can be kept to');
  compiled.set(key, grammar);
  const [oldest] = compiled.keys();
  if (compiled.size > maxCompiled && oldest !== undefined) {
    compiled.get(oldest)?.dispose();
    compiled.delete(oldest);
  }
  return grammar;
}

/**
 * @param {import('@mlc-ai/web-xgrammar').GrammarMatcher} matcher
 * @param {number} token
 */
function accept(matcher, token) {
  if (!matcher.acceptToken(token)) throw new Error('the token does not fit');
}

/** @param {import('./thread.ts').GrammarCall} call */
async function answer(call) {
  switch (call.kind) {
    case 'compile':
      await compile(call.source);
      return undefined;
    case 'start': {
      const matcher = await xgrammar.GrammarMatcher.createGrammarMatcher(await compile(call.source));
      const forbidden = specialTokens.flatMap((/** @type {{ id: number, name: string }} */ { id, name }) =>
        call.specialTokens.includes(name) ? [] : [id],
      );
      matchers.set(call.matcher, { matcher, forbidden });
      for (const token of call.tokens) accept(matcher, token);
      return undefined;
    }
    case 'next': {
      const found = matchers.get(call.matcher);
      if (found === undefined) throw new Error('there is no such matcher');
      const { matcher, forbidden } = found;
      if (call.token !== undefined) accept(matcher, call.token);
      if (matcher.isTerminated()) return new Int32Array();
      const mask = await matcher.getNextTokenBitmask();
      for (const id of forbidden) mask[id >> 5] = /** @type {number} */ (mask[id >> 5]) & ~(1 << (id & 31));
      return mask;
    }
    case 'end':
      matchers.get(call.matcher)?.matcher.dispose();
      matchers.delete(call.matcher);
      return undefined;
  }
}

parentPort?.postMessage('ready');
let last = Promise.resolve();
parentPort?.on('message', (call) => {
  last = last.then(async () => {
    try {
      const value = await answer(call);
      parentPort?.postMessage({ value }, value === undefined ? [] : [/** @type {ArrayBuffer} */ (value.buffer)]);
    } catch (error) {
      const spoken = said.map((line) => line.replace(/^\[\w+\] \S+: /, '')).filter((line) => !/^Aborted/.test(line));
      const message = spoken[0] ?? (error instanceof Error ? error.message : 'it is not understood');
      parentPort?.postMessage({ error: message });
    }
  });
});
