/**
 * Measures one contender in this process and prints ns per operation:
 * `node contender.ts <suite> <workload> <contender> <milliseconds>`.
 */
import { quantile } from "./bench.ts"
import { loadSuite } from "./suites.ts"

const [suiteName, workloadName, contenderName, budget] = process.argv.slice(2)
const suite = await loadSuite(suiteName!)
const workload = suite.workloads.find(({ name }) => name === workloadName)!
const contender = workload.contenders.find(({ name }) => name === contenderName)!

const run = await contender.make()
const millis = Number(budget)

/**
 * Batches until the time is up; the lower quartile of their ns per operation. What
 * else runs on the machine only ever adds to a batch; collecting garbage is in each.
 */
const measure = async (millis: number): Promise<number> => {
  const samples: Array<number> = []
  const end = performance.now() + millis
  while (samples.length < 3 || performance.now() < end) samples.push((await run(workload.batch)) / workload.batch)
  return quantile(samples, 0.25)
}

// Until its code is compiled: with one in flight that takes longer than a batch.
await measure(3 * millis)
process.stdout.write(`${await measure(millis)}\n`, () => process.exit(0))
