import { join } from 'node:path';
import { Environment, Interpreter, parse, Template, tokenize } from '@huggingface/jinja';
import { EspalierError } from '../errors.ts';
import { isObject, readJson, readTokenizerFile } from './json.ts';
import { runWithin } from './time-limit.ts';

/** Templates run for about a millisecond; one that loops for ever ends here. */
const renderMilliseconds = 2_000;
/** Longest text that a template gives: far more than any context holds. */
const longestText = 2 ** 24;
/** Longest list that `range` of a template gives. */
const longestRange = 100_000;

/** A message as chat templates read it; fields beyond these reach the template unchanged. */
export interface ChatMessage {
  readonly role: string;
  /** Text, or parts such as `{ type: 'text', text }` where the template knows them. */
  readonly content: string | null | readonly object[];
  readonly [field: string]: unknown;
}

/** The Jinja templates of a checkpoint by name; `default` is the one for plain chat. */
export interface ChatTemplate {
  /** Where it was read, for messages. */
  readonly file: string;
  readonly templates: ReadonlyMap<string, string>;
}

/**
 * Reads the chat template of a checkpoint folder: chat_template.jinja if there is one, otherwise `chat_template` of
 * tokenizer_config.json, which is one template or a list of named ones.
 * @throws EspalierError `TOKENIZER` if there is none, or it is neither.
 */
export async function loadChatTemplate(directory: string): Promise<ChatTemplate> {
  const jinja = join(directory, 'chat_template.jinja');
  if ((await readTokenizerFile(jinja)) !== undefined) return await readChatTemplate(jinja);

  const file = join(directory, 'tokenizer_config.json');
  const config = await readJson(file);
  const found = isObject(config) ? config.chat_template : undefined;
  if (typeof found === 'string') return { file, templates: new Map([['default', found]]) };
  if (found === undefined || found === null) {
    throw new EspalierError(
      'TOKENIZER',
      `${directory} has no chat template: neither chat_template.jinja nor chat_template in tokenizer_config.json; ` +
        'give a prompt instead of messages, or copy the template of the chat model this was made from',
      { file },
    );
  }
  const templates = new Map<string, string>();
  for (const entry of Array.isArray(found) ? found : [found]) {
    if (!isObject(entry) || typeof entry.name !== 'string' || typeof entry.template !== 'string') {
      const message = `${file}: chat_template is neither a text nor a list of { name, template }`;
      throw new EspalierError('TOKENIZER', message, { file, field: 'chat_template' });
    }
    templates.set(entry.name, entry.template);
  }
  return { file, templates };
}

/** A chat template in a file of its own. @throws EspalierError `TOKENIZER` if there is no such file */
export async function readChatTemplate(file: string): Promise<ChatTemplate> {
  const text = await readTokenizerFile(file);
  if (text === undefined) throw new EspalierError('TOKENIZER', `${file} does not exist`, { file });
  return { file, templates: new Map([['default', text]]) };
}

export interface RenderChatOptions {
  template: ChatTemplate;
  /** Text of the begin token, where the template writes it. @default '' */
  bosToken?: string | undefined;
  /** Text of the end token, where the template writes it. @default '' */
  eosToken?: string | undefined;
  /** End with the beginning of an answer, so that the model writes it. @default true */
  addGenerationPrompt?: boolean;
  /** JSON schemas of functions; with them the template named `tool_use` is preferred. */
  tools?: readonly object[] | undefined;
}

/**
 * Writes messages as the text that the model was trained on. The text contains the special tokens, so encode it with
 * `addSpecialTokens: false`.
 * @throws EspalierError `TOKENIZER` if the template is not Jinja, refuses the messages, or does not end.
 */
export function renderChat(messages: readonly ChatMessage[], options: RenderChatOptions): string {
  const { template, tools, addGenerationPrompt = true } = options;
  const { file, templates } = template;
  const fail = (message: string, cause?: unknown) =>
    new EspalierError('TOKENIZER', `${file}: ${message}`, { file, cause });
  const source = (tools === undefined ? undefined : templates.get('tool_use')) ?? templates.get('default');
  if (source === undefined) {
    throw fail(
      `chat_template has no template named "default", only ${[...templates.keys()].join(', ') || 'an empty list'}`,
    );
  }
  const variables = {
    messages,
    bos_token: options.bosToken ?? '',
    eos_token: options.eosToken ?? '',
    add_generation_prompt: addGenerationPrompt,
    ...(tools === undefined ? {} : { tools }),
  };
  try {
    const text = runWithin(
      renderMilliseconds,
      () => render(source, variables),
      () => fail(`the chat template ran for more than ${renderMilliseconds} ms; replace it by the original model's`),
    );
    if (text.length <= longestText) return text;
    throw fail(`the chat template wrote ${text.length} characters, at most ${longestText} are taken`);
  } catch (error) {
    if (error instanceof EspalierError) throw error;
    throw fail(
      `the chat template failed on these messages: ${error instanceof Error ? error.message : String(error)}`,
      error,
    );
  }
}

/** What `Template.render` does, with a `range` that cannot exhaust memory. */
function render(source: string, variables: object): string {
  const program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
  const environment = new Environment();
  const globals = { ...constants, range, raise_exception: raise, strftime_now: now };
  for (const [name, value] of Object.entries({ ...globals, ...variables })) environment.set(name, value);
  return String(new Interpreter(environment).run(program).value);
}

const constants = { true: true, false: false, none: null, True: true, False: false, None: null };

function raise(message: unknown): never {
  throw new Error(String(message));
}

function now(format: string): string {
  return new Template('{{ strftime_now(format) }}').render({ format });
}

function range(first: number, past?: number, step = 1): number[] {
  const [start, stop] = past === undefined ? [0, first] : [first, past];
  const length = step === 0 ? Number.NaN : Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= longestRange)) throw new Error(`range has ${length} values, at most ${longestRange} are allowed`);
  return Array.from({ length }, (_, i) => start + i * step);
}
