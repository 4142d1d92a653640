import type { Contender, Suite, Workload } from "../bench.ts"
import { databaseUrl, redisUrl } from "./server.ts"

const instances = () => import("./instances.ts")

const committing = (name: string, fibers: number): Workload => ({
  name,
  batch: 50 * fibers,
  contenders: [
    {
      name: "with an outbox",
      setup: "an insert and SyncMessage.publish in a transaction; rows are relayed meanwhile",
      make: async () => (await instances()).committing(fibers, "outbox")
    },
    {
      name: "after the commit",
      setup: "the same without an outbox: sent after the commit, by Redis' PUBLISH",
      make: async () => (await instances()).committing(fibers, "after commit")
    },
    {
      name: "a second row (raw)",
      setup: "an insert and another one into a table without triggers",
      make: async () => (await instances()).committing(fibers, "a plain row")
    },
    {
      name: "an insert alone (raw)",
      setup: "nobody is told",
      make: async () => (await instances()).committing(fibers, "nothing")
    }
  ]
})

/** 5,000 a second. */
const goal: Contender = {
  name: "0.2 ms (goal)",
  setup: "no code: the time that 5,000 a second leave for each",
  goal: 1,
  make: async () => async (n) => n * 200_000
}

const relaying = (name: string, kind: "sync" | "job"): Workload => ({
  name,
  batch: 10_000,
  contenders: [
    {
      name: "cohort",
      setup: "from the commit of 10,000 rows on one channel until another instance has handled all, and none is left",
      make: async () => (await instances()).relaying(kind)
    },
    goal
  ]
})

/** On PostgreSQL and Redis of their own, on this machine. */
export const suite: Suite = {
  name: "outbox",
  prepare: async () => {
    process.env.DATABASE_URL ||= await databaseUrl()
    process.env.REDIS_URL ||= await redisUrl()
  },
  workloads: [
    committing("commit, 1 in flight", 1),
    committing("commit, 16 in flight", 16),
    relaying("relay sync messages", "sync"),
    relaying("relay jobs", "job")
  ]
}
