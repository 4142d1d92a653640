import type { Suite } from "./bench.ts"

/** A new backend's benchmarks are one folder and one line here. */
const suites: Record<string, () => Promise<{ readonly suite: Suite }>> = {
  memory: () => import("./memory/suite.ts"),
  redis: () => import("./redis/suite.ts"),
  outbox: () => import("./outbox/suite.ts"),
  amqp: () => import("./amqp/suite.ts"),
  telemetry: () => import("./telemetry/suite.ts")
}

export const suiteNames = Object.keys(suites)

export const loadSuite = async (name: string): Promise<Suite> => (await suites[name]!()).suite
