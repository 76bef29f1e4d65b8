import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { onTestFinished } from 'vitest';

/** Mounts a tmpfs at a new folder until the test ends; returns why it could not, if it could not. */
export function mountTmpfs(folder: string, options: string): string | undefined {
  mkdirSync(folder, { recursive: true });
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', folder], { stdio: 'pipe' });
  } catch (error) {
    return `a tmpfs cannot be mounted here (${(error as Error).message.trim().split('\n').at(-1)})`;
  }
  // Registered after the folder's own removal, so it runs before that.
  onTestFinished(() => void execFileSync('umount', ['-l', folder]));
  return undefined;
}
