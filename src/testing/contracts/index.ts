/**
 * Contract suites for backends.
 *
 * @since 0.2.0
 */
export * as Backend from "./Backend.ts"
export * as Contracts from "./Contracts.ts"
export * as TcpProxy from "./TcpProxy.ts"
