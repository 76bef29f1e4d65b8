/** The page in a browser. With ESPALIER_SCREENSHOTS set to a folder, what it looks like is written there. */
import { accessSync, constants, mkdirSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { type RunningServer, startServer, until } from './support/server.ts';

const executablePath = ['chromium', 'chromium-browser', 'google-chrome'].map(inPath).find((path) => path !== undefined);

function inPath(name: string): string | undefined {
  return (process.env.PATH ?? '')
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find((path) => {
      try {
        accessSync(path, constants.X_OK);
        return true;
      } catch {
        return false;
      }
    });
}

const phone = { width: 375, height: 700 };
const desktop = { width: 1280, height: 800 };

test('the page is there without a key, forbids what is not its own, and can be turned off', async () => {
  await using server = await startServer({ apiKeys: ['secret'] });
  const page = await server.app.inject('/');
  expect([page.statusCode, page.headers['content-type']]).toEqual([200, 'text/html; charset=utf-8']);
  expect(page.headers['content-security-policy']).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self';/);
  const parts = [...page.body.matchAll(/(?:src|href)="(page\/[^"]+)"/g)].map(([, path]) => `/${path}`);
  expect(parts.length).toBeGreaterThan(1);
  for (const path of parts) expect((await server.app.inject(path)).statusCode, path).toBe(200);
  expect(page.body).not.toMatch(/https?:|<style|<script>|\son\w+=/);
  expect((await server.app.inject('/page/../keys.ts')).statusCode).toBe(401);
  await using without = await startServer({ page: false });
  expect((await without.app.inject('/')).statusCode).toBe(404);
});

describe('in a browser', () => {
  let browser: Browser | undefined;
  let server: RunningServer;
  beforeAll(async () => {
    if (executablePath === undefined) return;
    browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
    server = await startServer({ apiKeys: ['secret'] });
  });
  afterAll(async () => {
    await browser?.close();
    await server?.[Symbol.asyncDispose]();
  });

  /** Opens the page; what the browser complains about is in `complaints`. */
  async function open(options: { viewport: typeof phone; colorScheme: 'light' | 'dark' }) {
    const context = await browser!.newContext(options);
    const page = await context.newPage();
    const complaints: string[] = [];
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('console', (message) => {
      // A refusal is what the page waits for at first.
      if (message.type() === 'error' && !message.text().includes('401')) complaints.push(message.text());
    });
    page.on('request', (request) => {
      if (!request.url().startsWith(server.url) && !request.url().startsWith('data:')) complaints.push(request.url());
    });
    await page.goto(server.url);
    return { page, complaints };
  }

  async function generateUntil(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      for await (const _ of server.model.generate('Once', { maxTokens: 500, ignoreEos: true }))
        if (signal.aborted) break;
    }
  }

  async function screenshot(page: Page, name: string): Promise<void> {
    const folder = process.env.ESPALIER_SCREENSHOTS;
    if (folder === undefined) return;
    mkdirSync(folder, { recursive: true });
    await page.screenshot({ path: join(folder, `${name}.png`) });
  }

  /** Nothing sticks out of the window. */
  async function fits(page: Page): Promise<boolean> {
    return page.evaluate(
      'document.documentElement.scrollWidth <= innerWidth && document.body.scrollHeight <= innerHeight',
    );
  }

  test.for([
    { name: 'phone', viewport: phone, colorScheme: 'light' },
    { name: 'desktop', viewport: desktop, colorScheme: 'dark' },
  ] as const)(
    'asks for a key, chats and shows the load: $name, $colorScheme',
    async ({ name, viewport, colorScheme }, { skip }) => {
      if (browser === undefined) skip('there is no chromium in the path');
      const { page, complaints } = await open({ viewport, colorScheme });
      // The model would end its answers when it likes.
      await page.route('**/v1/chat/completions', (route) =>
        route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ignore_eos: true }) }),
      );
      await page.getByText('a valid API key is needed').waitFor();
      expect(await page.getByLabel('API key').isVisible()).toBe(true);
      await screenshot(page, `${name}-${colorScheme}-key`);
      await page.getByLabel('API key').fill('secret');
      await page.getByLabel('Most tokens').fill('60');
      await page.getByText('Settings').click();
      await page.getByText('demo', { exact: true }).waitFor();

      await page.getByLabel('Message').fill('Where is the river?');
      await page.getByLabel('Message').press('Enter');
      await page.getByText(/^60 tokens in [\d.]+ s$/).waitFor();
      const said = await page.locator('.assistant p').first().textContent();
      expect(said!.length).toBeGreaterThan(20);

      // With others beside it the second answer takes long enough to be watched.
      const stop = new AbortController();
      const others = Promise.all(Array.from({ length: 12 }, () => generateUntil(stop.signal)));
      onTestFinished(() => {
        stop.abort();
        return others.then(() => {});
      });

      // The second question carries the first, and a long answer can be stopped.
      const asked = page.waitForRequest(/chat\/completions/);
      await page.getByText('Settings').click();
      await page.getByLabel('Most tokens').fill('1900');
      await page.getByText('Settings').click();
      await page.getByLabel('Message').fill('<b>And</b> the town?');
      await page.getByRole('button', { name: 'Send' }).click();
      const { messages } = (await asked).postDataJSON();
      expect(messages.map(({ content }: { content: string }) => content)).toEqual([
        'Where is the river?',
        said,
        '<b>And</b> the town?',
      ]);
      const shown = async (id: string) => Number.parseFloat((await page.locator(id).textContent())!);
      await until(
        async () => (await shown('#running')) > 1 && (await shown('#rate')) > 0 && (await shown('#cache')) > 0,
      );
      await until(async () => (await page.locator('#history polyline').getAttribute('points'))!.includes(' '));
      expect(await fits(page)).toBe(true);
      await screenshot(page, `${name}-${colorScheme}`);
      await page.getByRole('button', { name: 'Stop' }).click();
      await page.getByText('stopped').waitFor();
      stop.abort();
      await until(() => server.model.kv.free === server.model.kv.size);

      await page.getByRole('button', { name: 'New chat' }).click();
      expect(await page.locator('article').count()).toBe(0);
      expect(complaints).toEqual([]);
      await page.context().close();
    },
  );
});
