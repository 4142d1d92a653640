/** What the queue benchmarks share. */
import { median } from "./bench.ts"

/** About 150 bytes as JSON. */
export const payload = {
  id: "5b1f0f5e-2f0c-4d52-9a0f-7f2d7d3d7c11",
  name: "Ada Lovelace",
  email: "ada@analytical.example",
  rows: 250,
  createdAt: "2026-01-01T00:00:00.000Z"
}

export const pause = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

/** Publishes one at a time, to a worker that waits, and takes the median of the times until its handler starts. */
const medianOf = async (
  n: number,
  publish: () => Promise<unknown>,
  started: () => Promise<bigint>,
  millis: number
): Promise<number> => {
  const times: Array<number> = []
  for (let i = 0; i < n; i++) {
    const start = started()
    const from = process.hrtime.bigint()
    const published = publish()
    times.push(Number((await start) - from))
    await published
    if (millis > 0) await pause(millis)
  }
  return median(times) * n
}

/** The code is compiled by many without a pause, as it is in a process that has worked before; the pauses make it idle. */
export const idle = async (publish: () => Promise<unknown>, started: () => Promise<bigint>) => {
  await pause(500)
  await medianOf(5_000, publish, started, 0)
  return (n: number) => medianOf(n, publish, started, 3)
}

export const signal = () => {
  let resolve: (at: bigint) => void = () => {}
  return {
    next: () => new Promise<bigint>((done) => (resolve = done)),
    fire: () => resolve(process.hrtime.bigint())
  }
}
