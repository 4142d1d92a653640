/**
 * What a simulation does, step by step: drawn at random, written as text that a person reads, and read back from it.
 *
 * ```
 * +1.2s 0 runs increment #48151
 * +0s 2 freezes for 31s
 * +0.35s 0 and 2 are cut off for 5s
 * +2s 1 crashes for 12s
 * +0s 1 stops for 3s
 * +0s 0 is 4.5s ahead for 10s
 * +0s 1 is refused lock.renew after it takes effect, 2 times
 * +0s messages take 0.1s to 0.6s, 20% are lost, 5% doubled, 10% overtaken for 8s
 * ```
 */
import type { Operation } from "../Observation.ts"
import type { Prng } from "./Prng.ts"

/** Times are in milliseconds; `after` is since the step before. */
export type Step = { readonly after: number } & Act

export type Act =
  | { readonly act: "run"; readonly instance: number; readonly name: string; readonly seed: number }
  | { readonly act: "crash" | "stop" | "freeze"; readonly instance: number; readonly lasts: number }
  | { readonly act: "cut"; readonly instances: ReadonlyArray<number>; readonly lasts: number }
  | { readonly act: "skew"; readonly instance: number; readonly by: number; readonly lasts: number }
  | {
      readonly act: "refuse"
      readonly instance: number
      readonly operation: Operation
      readonly when: "before" | "after"
      readonly times: number
    }
  | {
      readonly act: "network"
      readonly delay: number
      readonly jitter: number
      /** In percent, these. */
      readonly loss: number
      readonly duplication: number
      readonly reordering: number
      readonly lasts: number
    }

/**
 * A kind of fault.
 *
 * - `crash`: an instance is killed, and started again within 10 seconds.
 * - `stop`: it is stopped cleanly, and started again.
 * - `freeze`: it stands still for up to 90 seconds.
 * - `partition`: some instances are cut off from the broker for up to 30 seconds.
 * - `skew`: the wall clock of an instance is up to a minute off, for up to a minute.
 * - `refusal`: operations of a store fail with `Unavailable`, before or after they take effect.
 * - `delay`: messages take their time, in order.
 * - `loss`, `duplication`, `reordering` of messages: more than brokers do, as a rule, without telling of a gap.
 *
 * @since 0.2.0
 */
export type Fault =
  | "crash"
  | "stop"
  | "freeze"
  | "partition"
  | "skew"
  | "refusal"
  | "delay"
  | "loss"
  | "duplication"
  | "reordering"

const refusable: ReadonlyArray<Operation> = [
  ...(["cache.get", "cache.set", "cache.del", "cache.fill", "cache.reserve"] as const),
  ...(["lock.acquire", "lock.acquire", "lock.renew", "lock.renew", "lock.release"] as const),
  ...(["pubsub.publish", "queue.publish", "queue.take", "queue.settle", "queue.settle", "queue.renew"] as const)
]

export interface Plan {
  readonly instances: number
  readonly steps: number
  /** Names of operations, with how often each comes up. */
  readonly workload: ReadonlyArray<readonly [name: string, weight: number]>
  readonly faults: ReadonlyArray<Fault>
  /** The chance that a step is a fault. */
  readonly faultRate: number
  /** Mean milliseconds between steps. */
  readonly pace: number
}

/** Draws a schedule. */
export const draw = (random: Prng, plan: Plan): ReadonlyArray<Step> =>
  Array.from({ length: plan.steps }, () => {
    const after = random.chance(0.25) ? 0 : random.between(0, Math.round((plan.pace * 8) / 3))
    const faulty = plan.faults.length > 0 && random.chance(plan.faultRate)
    return { after, ...(faulty ? drawFault(random, plan) : drawRun(random, plan)) }
  })

const drawRun = (random: Prng, { instances, workload }: Plan): Act => {
  let ticket = random.between(
    1,
    workload.reduce((sum, [, weight]) => sum + weight, 0)
  )
  let name = ""
  for (const [candidate, weight] of workload) {
    name = candidate
    ticket -= weight
    if (ticket <= 0) break
  }
  return { act: "run", instance: random.between(0, instances - 1), name, seed: random.between(0, 99_999) }
}

const drawFault = (random: Prng, { faults, instances }: Plan): Act => {
  const fault = random.pick(faults)
  const instance = random.between(0, instances - 1)
  switch (fault) {
    case "crash":
    case "stop":
      return { act: fault, instance, lasts: random.between(0, 10_000) }
    case "freeze":
      return { act: fault, instance, lasts: random.chance(0.5) ? random.between(1, 5_000) : random.between(1, 90_000) }
    case "partition": {
      const away = Array.from({ length: instances }, (_, i) => i).filter((i) => i === instance || random.chance(0.3))
      return { act: "cut", instances: away, lasts: random.between(1, 30_000) }
    }
    case "skew":
      return { act: fault, instance, by: random.between(-60_000, 60_000), lasts: random.between(1, 60_000) }
    case "refusal": {
      const when = random.pick(["before", "after"] as const)
      return { act: "refuse", instance, operation: random.pick(refusable), when, times: random.between(1, 3) }
    }
    case "delay":
    case "loss":
    case "duplication":
    case "reordering": {
      const percent = (kind: Fault) => (faults.includes(kind) && random.chance(0.5) ? random.between(1, 30) : 0)
      return {
        ...{ act: "network", delay: random.between(0, 500), jitter: random.between(0, 1_000) },
        ...{ loss: percent("loss"), duplication: percent("duplication"), reordering: percent("reordering") },
        lasts: random.between(1, 30_000)
      }
    }
  }
}

const seconds = (millis: number): string => `${millis / 1_000}s`
const list = (instances: ReadonlyArray<number>): string => instances.join(" and ")

/** What a step does, as text. */
export const actText = (step: Act): string => {
  switch (step.act) {
    case "run":
      return `${step.instance} runs ${step.name} #${step.seed}`
    case "crash":
      return `${step.instance} crashes for ${seconds(step.lasts)}`
    case "stop":
      return `${step.instance} stops for ${seconds(step.lasts)}`
    case "freeze":
      return `${step.instance} freezes for ${seconds(step.lasts)}`
    case "cut":
      return `${list(step.instances)} ${step.instances.length === 1 ? "is" : "are"} cut off for ${seconds(step.lasts)}`
    case "skew":
      return `${step.instance} is ${seconds(step.by)} ahead for ${seconds(step.lasts)}`
    case "refuse":
      return `${step.instance} is refused ${step.operation} ${step.when} it takes effect, ${step.times} times`
    case "network": {
      const { delay, duplication, jitter, lasts, loss, reordering } = step
      return (
        `messages take ${seconds(delay)} to ${seconds(delay + jitter)}, ` +
        `${loss}% are lost, ${duplication}% doubled, ${reordering}% overtaken for ${seconds(lasts)}`
      )
    }
  }
}

/** A schedule as text, one step a line. */
export const toText = (steps: ReadonlyArray<Step>): string =>
  steps.map((step) => `+${seconds(step.after)} ${actText(step)}`).join("\n")

const time = String.raw`(-?[\d.]+)s`
const forms: ReadonlyArray<readonly [RegExp, (fields: ReadonlyArray<string>) => Act]> = [
  [
    /^(\d+) runs (.+) #(\d+)$/,
    ([instance, name, seed]) => ({ act: "run", instance: +instance!, name: name!, seed: +seed! })
  ],
  [
    new RegExp(`^(\\d+) (crashes|stops|freezes) for ${time}$`),
    ([instance, verb, lasts]) => ({
      ...{ act: verb === "crashes" ? "crash" : verb === "stops" ? "stop" : "freeze" },
      ...{ instance: +instance!, lasts: millis(lasts!) }
    })
  ],
  [
    new RegExp(`^([\\d and]+) (?:is|are) cut off for ${time}$`),
    ([instances, lasts]) => ({ act: "cut", instances: instances!.split(" and ").map(Number), lasts: millis(lasts!) })
  ],
  [
    new RegExp(`^(\\d+) is ${time} ahead for ${time}$`),
    ([instance, by, lasts]) => ({ act: "skew", instance: +instance!, by: millis(by!), lasts: millis(lasts!) })
  ],
  [
    /^(\d+) is refused (\S+) (before|after) it takes effect, (\d+) times$/,
    ([instance, operation, when, times]) => ({
      ...{ act: "refuse", instance: +instance!, operation: operation as Operation },
      ...{ when: when as "before" | "after", times: +times! }
    })
  ],
  [
    new RegExp(`^messages take ${time} to ${time}, (\\d+)% are lost, (\\d+)% doubled, (\\d+)% overtaken for ${time}$`),
    ([delay, most, loss, duplication, reordering, lasts]) => ({
      ...{ act: "network", delay: millis(delay!), jitter: millis(most!) - millis(delay!), loss: +loss! },
      ...{ duplication: +duplication!, reordering: +reordering!, lasts: millis(lasts!) }
    })
  ]
]

const millis = (text: string): number => Math.round(Number(text) * 1_000)

/** Reads what {@link toText} wrote; throws on a line that is none of it. */
export const fromText = (text: string): ReadonlyArray<Step> =>
  text
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "")
    .map((line) => {
      const [, after, act = ""] = /^\+([\d.]+)s (.*)$/.exec(line) ?? []
      for (const [form, read] of forms) {
        const found = form.exec(act)
        if (found !== null && after !== undefined) return { after: millis(after), ...read(found.slice(1)) }
      }
      throw new Error(`not a step of a schedule: ${line}`)
    })
