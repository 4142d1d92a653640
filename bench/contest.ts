/**
 * Two processes that want the same lock, 16 loops in each. The second one is this file run by itself:
 * `node contest.ts <suite> <locker> <key>` runs until its input ends, and answers every line with how often it entered.
 */
import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { median } from "./bench.ts"

/** Runs one loop for each key, under the lock of that key, until `entered` says no. */
export type Locker = (keys: ReadonlyArray<string>, entered: (loop: number) => boolean) => Promise<void>

/** How each contender of a suite runs something under a lock. */
export type Lockers = Record<string, { readonly setup: string; readonly make: () => Promise<Locker> }>

const made = new Map<string, Promise<Locker>>()

/** One for all contests of this process, which has had a lock before any begins: connected, and caught up. */
const lockerOf = (suite: string, name: string): Promise<Locker> => {
  const make = async () => {
    const { lockers }: { readonly lockers: Lockers } = await import(`./${suite}/lock.ts`)
    const run = await lockers[name]!.make()
    await run([`first-${process.pid}`], () => false)
    return run
  }
  const id = `${suite} ${name}`
  const locker = made.get(id) ?? make()
  made.set(id, locker)
  return locker
}

/** In nanoseconds. */
export interface Contest {
  readonly perHandOver: number
  readonly longest: number
  readonly median: number
}

const loops = 16
let contests = 0

/** Until this process has had the lock `n` times. */
export const contest = async (suite: string, name: string, n: number): Promise<Contest> => {
  const run = await lockerOf(suite, name)
  const key = `contest-${process.pid}-${contests++}`
  const other = spawn(process.execPath, [import.meta.filename, suite, name, key], {
    stdio: ["pipe", "pipe", "inherit"]
  })
  const lines = createInterface({ input: other.stdout })[Symbol.asyncIterator]()
  const othersCount = async () => {
    other.stdin.write("\n")
    return Number((await lines.next()).value)
  }
  await othersCount()
  const waits: Array<number> = []
  const since = Array.from({ length: loops }, () => process.hrtime.bigint())
  const before = await othersCount()
  const start = process.hrtime.bigint()
  let left = n
  await run(
    Array.from({ length: loops }, () => key),
    (loop) => {
      const now = process.hrtime.bigint()
      waits.push(Number(now - since[loop]!))
      since[loop] = now
      return --left >= loops
    }
  )
  const took = Number(process.hrtime.bigint() - start)
  const after = await othersCount()
  other.stdin.end()
  await new Promise((exited) => other.once("exit", exited))
  // The first of each loop waited for the others to begin.
  const steady = waits.slice(loops)
  return { perHandOver: took / (n + after - before), longest: Math.max(...steady), median: median(steady) }
}

if (import.meta.main) {
  const [suite, name, key] = process.argv.slice(2)
  const run = await lockerOf(suite!, name!)
  let count = 0
  let over = false
  const running = run(
    Array.from({ length: loops }, () => key!),
    () => {
      count++
      return !over
    }
  )
  for await (const _ of createInterface({ input: process.stdin })) console.log(count)
  over = true
  await running
  process.exit(0)
}
