/**
 * For the tests of plugins: layers to look into, clusters, and simulations of them.
 *
 * @since 0.2.0
 */
export * as Backend from "./Backend.ts"
export * as Invariant from "./Invariant.ts"
export * as Observation from "./Observation.ts"
export * as Simulation from "./Simulation.ts"
export * as TestCache from "./TestCache.ts"
export * as TestCluster from "./TestCluster.ts"
export * as TestEventQueue from "./TestEventQueue.ts"
export * as TestLock from "./TestLock.ts"
export * as TestPubSub from "./TestPubSub.ts"
export * as TestStores from "./TestStores.ts"
export * as TestSyncMessage from "./TestSyncMessage.ts"
