/** Requests to the server that this page comes from, with the key that was typed in. */

const stored = 'espalier-key';

/** Kept for this tab alone. */
export const key = {
  get: () => sessionStorage.getItem(stored) ?? '',
  set: (value) => sessionStorage.setItem(stored, value),
};

/** What the server refused, in its words. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** @throws Refusal where the status is not 2xx */
export async function ask(path, { body, signal } = {}) {
  const headers = key.get() === '' ? {} : { authorization: `Bearer ${key.get()}` };
  const post = {
    method: 'POST',
    body: JSON.stringify(body),
    headers: { ...headers, 'content-type': 'application/json' },
  };
  const answer = await fetch(path, { ...(body === undefined ? { headers } : post), signal });
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, error?.message ?? `the server answered with status ${answer.status}`);
}

/** The objects of a stream of server-sent events. */
export async function* eventsOf(answer) {
  let text = '';
  for await (const part of readerOf(answer.body.pipeThrough(new TextDecoderStream()))) {
    text += part;
    const events = text.split('\n\n');
    text = events.pop();
    for (const event of events) {
      const data = event.slice('data: '.length);
      if (data !== '[DONE]') yield JSON.parse(data);
    }
  }
}

/** Not every browser can iterate over a stream. */
async function* readerOf(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}
