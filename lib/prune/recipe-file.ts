/** Recipe files: YAML, of which JSON is a part. */
import { isMap, isScalar, isSeq, LineCounter, type Node, parseDocument } from 'yaml';
import { readSmallFile } from '../checkpoint/json-file.ts';
import { EspalierError } from '../errors.ts';
import { type RecipeOptions, resolveRecipe } from './recipe.ts';

const maxBytes = 2 ** 20;

/**
 * Reads a recipe: the fields of RecipeOptions, or only the list of its stages.
 * @throws RECIPE naming file, line and field
 */
export function readRecipe(path: string): RecipeOptions {
  const lines = new LineCounter();
  const document = parseDocument(readSmallFile(path, 'RECIPE', maxBytes).toString(), {
    lineCounter: lines,
    prettyErrors: false,
  });
  const problem = document.errors[0];
  if (problem !== undefined) throw fail(path, lines.linePos(problem.pos[0]).line, problem.message);
  const value: unknown = document.toJS();
  const isList = Array.isArray(value);
  if (!isList && (typeof value !== 'object' || value === null)) {
    throw fail(path, 1, 'a recipe is a mapping, or a list of stages');
  }
  const options = (isList ? { stages: value } : value) as RecipeOptions;
  try {
    resolveRecipe(options);
  } catch (error) {
    if (!(error instanceof EspalierError)) throw error;
    const field = error.field ?? '';
    const steps = field === '' ? [] : field.split('.').slice(isList ? 1 : 0);
    throw fail(path, lineOf(steps), error.message, field);
  }
  return options;

  /** Of the deepest node on the way to a field. */
  function lineOf(steps: readonly string[]): number {
    let node: unknown = document.contents;
    let at = 0;
    for (const step of steps) {
      const pair = isMap(node) ? node.items.find(({ key }) => isScalar(key) && String(key.value) === step) : undefined;
      node = isSeq(node) ? node.items[Number(step)] : pair?.value;
      at = ((pair?.key ?? node) as Node | null | undefined)?.range?.[0] ?? at;
    }
    return lines.linePos(at).line;
  }
}

function fail(path: string, line: number, message: string, field?: string): EspalierError {
  return new EspalierError('RECIPE', `${path}, line ${line}: ${message}`, {
    file: path,
    ...(field === undefined || field === '' ? {} : { field }),
  });
}
