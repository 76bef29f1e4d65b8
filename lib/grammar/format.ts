/** The forms that an answer can be held to. */
import { EspalierError } from '../errors.ts';
import type { GrammarSource } from './grammars.ts';
import { checkSchema } from './schema.ts';

/** JSON between two texts. */
export interface TaggedSchema {
  readonly begin: string;
  readonly schema: object;
  /** As of a `json_schema`. @default false */
  readonly strict?: boolean | undefined;
  readonly end: string;
}

/** What the text of an answer must be. */
export type AnswerFormat =
  /** A JSON object. */
  | { readonly type: 'json_object' }
  /**
   * JSON that a JSON schema describes. With `strict` properties and items that it does not mention are not allowed; without,
   * it is read as the standard says. @default strict: false
   */
  | { readonly type: 'json_schema'; readonly schema: object; readonly strict?: boolean | undefined }
  /** A text that a regular expression matches from its beginning to its end; without lookaround and backreferences. */
  | { readonly type: 'regex'; readonly pattern: string }
  /** A text of a context-free grammar in extended Backus-Naur form, as xgrammar (and llama.cpp) has it, with a rule `root`. */
  | { readonly type: 'grammar'; readonly grammar: string }
  /** Tagged JSON, one or several, in a text: for calls of tools. */
  | {
      readonly type: 'tagged';
      readonly begin: string;
      readonly tags: readonly TaggedSchema[];
      readonly separator: string;
      readonly end: string;
      readonly several: boolean;
    };

/** Whitespace between two parts of JSON: room for nine levels of indentation, and an end to models that write no more. */
const whitespace = 20;
/** Characters of a schema or a pattern. */
const maxLength = 65_536;

/** @throws USAGE with the field `format` */
export function sourceOf(format: AnswerFormat): GrammarSource {
  const source = grammarOf(format);
  const { length } = JSON.stringify(source);
  if (length <= maxLength) return source;
  throw new EspalierError('USAGE', `format has ${length} characters, at most ${maxLength} are read`, {
    field: 'format',
  });
}

function grammarOf(format: AnswerFormat): GrammarSource {
  switch (format.type) {
    case 'json_object':
      return { kind: 'schema', schema: '{"type":"object"}', strict: false, whitespace };
    case 'json_schema':
      return { kind: 'schema', schema: textOf(format.schema), strict: format.strict ?? false, whitespace };
    case 'regex':
      return { kind: 'regex', pattern: format.pattern };
    case 'grammar':
      return { kind: 'grammar', grammar: format.grammar };
    case 'tagged': {
      const { begin: before, separator, end: behind, several } = format;
      const tags = format.tags.map(({ begin, schema, strict = false, end }) => ({
        begin,
        schema: textOf(schema),
        strict,
        end,
      }));
      return { kind: 'tagged', begin: before, tags, separator, end: behind, several, whitespace };
    }
    default:
      throw new EspalierError('USAGE', `format: there is no type ${JSON.stringify((format as AnswerFormat).type)}`, {
        field: 'format',
      });
  }
}

function textOf(schema: object): string {
  checkSchema(schema);
  return JSON.stringify(schema);
}
