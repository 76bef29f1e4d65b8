/** A conversation: what was said, and the answer that comes in. */
import { ask, eventsOf } from './api.js';

const log = document.getElementById('log');
const hint = document.getElementById('hint');
let messages = [];
let control;

export function clear() {
  control?.abort();
  messages = [];
  log.replaceChildren(hint);
}

export function stop() {
  control?.abort();
}

/** Asks, and shows the answer as it comes. Resolves when it has ended, whichever way. */
export async function say(model, content, options) {
  hint.remove();
  const conversation = [...messages, { role: 'user', content }];
  messages = conversation;
  add('user', content);
  const { text, note } = add('assistant', '');
  control = new AbortController();
  const { signal } = control;
  const sent = performance.now();
  log.ariaBusy = 'true';
  try {
    const body = { model, messages: conversation, stream: true, stream_options: { include_usage: true }, ...options };
    const answer = await ask('v1/chat/completions', { body, signal });
    for await (const { choices, usage, error } of eventsOf(answer)) {
      if (error !== undefined) throw new Error(error.message);
      append(text, choices[0]?.delta.content ?? '');
      if (usage) note.textContent = summary(usage, performance.now() - sent);
    }
  } catch (error) {
    note.textContent = signal.aborted ? 'stopped' : error.message;
    note.classList.toggle('wrong', !signal.aborted);
    if (!signal.aborted) return error;
  } finally {
    log.ariaBusy = 'false';
    // A new conversation may have begun meanwhile.
    if (messages === conversation) {
      messages =
        text.textContent === ''
          ? conversation.slice(0, -1)
          : [...conversation, { role: 'assistant', content: text.textContent }];
    }
  }
}

function summary({ completion_tokens: count }, milliseconds) {
  return `${count} token${count === 1 ? '' : 's'} in ${(milliseconds / 1000).toFixed(1)} s`;
}

function add(role, content) {
  const article = document.createElement('article');
  article.className = role;
  const [text, note] = [document.createElement('p'), document.createElement('p')];
  note.className = 'note';
  article.append(text, note);
  log.append(article);
  append(text, content);
  return { text, note };
}

/** Follows the end, unless the reader has scrolled away from it. */
function append(text, more) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  // Templates leave a blank before the answer.
  text.append(text.textContent === '' ? more.trimStart() : more);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}
