/** What a suite is made of. */

/** Runs `n` operations; resolves with the nanoseconds they took, preparation left out. */
export type Run = (n: number) => Promise<number>

export interface Contender {
  readonly name: string
  /** What is run, in words: printed nowhere, read by whoever doubts a number. */
  readonly setup: string
  /** Time of this contender divided by ours must be at least this. Without a goal it is there to compare. */
  readonly goal?: number
  /** Imports what it needs by itself, so that no process loads more than one contender. */
  readonly make: () => Promise<Run>
}

export interface Workload {
  readonly name: string
  /** Operations in one timed batch. */
  readonly batch: number
  /** The first one is ours. */
  readonly contenders: readonly [Contender, ...ReadonlyArray<Contender>]
}

/** One file per backend exports one as `suite`; `run.ts` lists them. */
export interface Suite {
  readonly name: string
  /** Runs once, before any contender: starts what they need, and tells them through the environment. */
  readonly prepare?: () => Promise<void>
  readonly workloads: ReadonlyArray<Workload>
}

/** Times one asynchronous call. */
export const timed = async (run: () => Promise<unknown>): Promise<number> => {
  const start = process.hrtime.bigint()
  await run()
  return Number(process.hrtime.bigint() - start)
}

/** A goal in nanoseconds, as a contender: who takes as long or less has met it. */
export const bound = (name: string, ns: number): Contender => ({
  name,
  setup: "a constant",
  goal: 1,
  make: async () => async (n) => ns * n
})

/** The median of `n` operations one after the other, as the time of all. */
export const medianOfEach = async (n: number, operation: (i: number) => Promise<unknown>): Promise<number> => {
  const times: Array<number> = []
  for (let i = 0; i < n; i++) times.push(await timed(() => operation(i)))
  return median(times) * n
}

/** Times `n` operations of async functions, each in a loop. */
export const timedInFlight = (
  n: number,
  inFlight: number,
  operation: (i: number) => Promise<unknown>
): Promise<number> =>
  timed(() =>
    Promise.all(
      Array.from({ length: inFlight }, async (_, worker) => {
        for (let i = worker; i < n; i += inFlight) await operation(i)
      })
    )
  )

export const quantile = (values: ReadonlyArray<number>, q: number): number => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.floor((sorted.length - 1) * q)]!
}

export const median = (values: ReadonlyArray<number>): number => quantile(values, 0.5)
