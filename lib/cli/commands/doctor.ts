import type { Command } from 'commander';
import type { Context, Start } from '../context.ts';
import { addGlobalOptions, type GlobalOptions } from '../options.ts';

/** `espalier doctor` */
export function defineDoctor(program: Command, start: Start): void {
  const command = program
    .command('doctor')
    .description('Look at this machine and installation: what is used, what is missing, what to do.');
  start(addGlobalOptions(command), run);
}

async function run({ terminal }: Context<GlobalOptions>): Promise<number> {
  const { examine } = await import('../../report/doctor.ts');
  const report = examine();
  terminal.document(report);
  const width = Math.max(...report.checks.map(({ name }) => name.length)) + 2;
  const marks = { ok: terminal.out.green('ok  '), note: terminal.out.yellow('note'), fail: terminal.out.red('FAIL') };
  for (const { name, status, value, advice } of report.checks) {
    terminal.print(`${marks[status]}  ${name.padEnd(width)}${value}`);
    if (advice !== undefined) terminal.print(`${' '.repeat(6 + width)}→ ${advice}`);
  }
  return report.ok ? 0 : 3;
}
