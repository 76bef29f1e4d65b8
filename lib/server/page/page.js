/** Ties the page's controls to the conversation and to the server's load. */
import { ask, key } from './api.js';
import { clear, say, stop } from './chat.js';
import { watchLoad } from './load.js';

const found = (id) => document.getElementById(id);
const question = found('question');
let model;

function number(id) {
  return found(id).value === '' ? undefined : found(id).valueAsNumber;
}

function showBusy(isBusy) {
  found('send').hidden = isBusy;
  found('stop').hidden = !isBusy;
}

function askForKey({ status }) {
  if (status !== 401) return;
  found('settings').open = true;
  found('key').focus();
}

async function findModel() {
  const { data } = await (await ask('v1/models')).json();
  model = data[0].id;
  found('model').textContent = model;
}

found('key').value = key.get();
found('key').addEventListener('change', () => key.set(found('key').value.trim()));
found('new').addEventListener('click', () => {
  clear();
  question.focus();
});
found('stop').addEventListener('click', stop);
question.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (found('stop').hidden) found('ask').requestSubmit();
});
found('ask').addEventListener('submit', async (event) => {
  event.preventDefault();
  const content = question.value.trim();
  if (content === '' || model === undefined) return;
  question.value = '';
  showBusy(true);
  const failure = await say(model, content, { temperature: number('temperature'), max_tokens: number('max-tokens') });
  showBusy(false);
  if (failure !== undefined) askForKey(failure);
});

let trouble;
watchLoad(async (failure) => {
  const was = trouble;
  trouble = failure?.status ?? (failure === undefined ? undefined : 'unreachable');
  found('trouble').hidden = failure === undefined;
  if (failure !== undefined) {
    found('trouble').textContent = trouble === 'unreachable' ? 'The server does not answer.' : failure.message;
    if (was !== trouble) askForKey(failure);
  } else if (model === undefined || was !== undefined) {
    await findModel();
  }
});
question.focus();
