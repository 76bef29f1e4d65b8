/** Changes fields of config.json in its text, so that all else stays as it was written (see config-text.ts). */

/** A field of the outermost object: where its value begins and ends in the text. */
interface FieldPlace {
  readonly name: string;
  readonly begin: number;
  readonly end: number;
}

/**
 * The text with values of the outermost object's fields replaced, and fields that it lacks added at its end.
 *
 * @param text Valid JSON, an object.
 */
export function setFields(text: string, fields: ReadonlyMap<string, unknown>): string {
  const places = fieldPlaces(text);
  const edits: { begin: number; end: number; text: string }[] = [];
  const added: string[] = [];
  for (const [name, value] of fields) {
    const json = JSON.stringify(value);
    // Of a name that stands twice, JSON.parse takes the last.
    const place = places.findLast((found) => found.name === name);
    if (place === undefined) added.push(`${JSON.stringify(name)}: ${json}`);
    else edits.push({ begin: place.begin, end: place.end, text: json });
  }
  if (added.length > 0) {
    const last = places.at(-1);
    const at = last?.end ?? text.indexOf('{') + 1;
    const indent = last === undefined ? '' : (/\n[ \t]*/.exec(text)?.[0] ?? ' ');
    edits.push({
      begin: at,
      end: at,
      text: `${last === undefined ? '' : ','}${indent}${added.join(`,${indent || ' '}`)}`,
    });
  }
  edits.sort((a, b) => b.begin - a.begin);
  let result = text;
  for (const { begin, end, text: own } of edits) result = result.slice(0, begin) + own + result.slice(end);
  return result;
}

function fieldPlaces(text: string): FieldPlace[] {
  const places: FieldPlace[] = [];
  // Strings whole; brackets, commas and colons; anything else up to the next of these.
  const tokens = text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g);
  let depth = 0;
  let name: string | undefined;
  let begin = -1;
  let end = -1;
  for (const { 0: token, index } of tokens) {
    if (depth === 1 && (token === ',' || token === '}') && name !== undefined) {
      places.push({ name, begin, end });
      name = undefined;
      begin = -1;
    } else if (depth === 1 && name === undefined && token.startsWith('"')) {
      name = JSON.parse(token) as string;
    } else if (!(depth === 1 && begin < 0 && token === ':') && depth >= 1) {
      if (begin < 0) begin = index;
      end = index + token.length;
    }
    if (token === '{' || token === '[') depth++;
    if (token === '}' || token === ']') depth--;
  }
  return places;
}
