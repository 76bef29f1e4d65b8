import type { Command } from 'commander';
import type { Start } from '../context.ts';
export function defineDemo(_program: Command, _start: Start): void {}
