"""elbv2 and autoscaling for a LocalStack without a licence, through the moto it bundles.

providers            which services moto answers, one call at a time
  overrides          operation -> our handler, for what moto gets wrong
    load_balancers target_groups targets listeners tags        elbv2
    traffic_sources scaling_groups                             autoscaling
    security_groups network_interfaces                         ec2, patched from below
  accounts           one way into moto's stores, one way to refuse, one clock
  settings           delays and states a test may ask for
control              HTTP paths under /moto-api/ for tests
  calls faults       call log, fault injection
  permissions policies   what IAM action a call asks for; whether a policy allows it
server               a server that binds to the address it was given
"""
