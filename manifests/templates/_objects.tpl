{{/*
The chart has no objects of its own: it reads the files that kustomize reads, and puts the release's namespace and the
values into them. tests/test_manifests.py holds both to the same result.
*/}}

{{/* Objects of a file, each under its own "---". Takes root, file, and values of the workload that is in it, if any. */}}
{{- define "weir.objects" }}
{{- range splitList "\n---\n" (.root.Files.Get .file | replace "weir-system" .root.Release.Namespace) }}
{{- $object := fromYaml . }}
{{- if has $object.kind (list "Deployment" "DaemonSet") }}
{{- include "weir.workload" (dict "object" $object "values" $.values "patches" ($.patches | default list) "root" $.root) }}
{{- else if and (eq $object.kind "ServiceAccount") $.values.serviceAccountAnnotations }}
{{- $_ := set $object.metadata "annotations" $.values.serviceAccountAnnotations }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}

{{/* Puts patches and values into a workload. Changes the object it is given. */}}
{{- define "weir.workload" }}
{{- $pod := .object.spec.template.spec }}
{{- $container := first $pod.containers }}
{{- range .patches }}
{{- $patch := $.root.Files.Get . | fromYaml }}
{{- $over := first $patch.spec.template.spec.containers }}
{{- include "weir.env" (dict "container" $container "env" $over.env) }}
{{- with $over.ports }}{{ $_ := set $container "ports" (rest .) }}{{ end }}
{{- with $patch.metadata.labels }}{{ $_ := set $.object.metadata "labels" (merge (dict) . $.object.metadata.labels) }}{{ end }}
{{- end }}
{{- $env := list }}
{{- range $name, $value := .values.env }}{{ $env = append $env (dict "name" $name "value" $value) }}{{ end }}
{{- include "weir.env" (dict "container" $container "env" $env) }}
{{- with .values.replicas }}{{ $_ := set $.object.spec "replicas" (int .) }}{{ end }}
{{- $_ := set $container "image" .values.image }}
{{- $_ := mergeOverwrite $container.resources (deepCopy .values.resources) }}
{{- $_ := mergeOverwrite $pod (deepCopy .values.pod) }}
{{- end }}

{{/* Sets variables of a container: the first ones take the place of those of the same name. */}}
{{- define "weir.env" }}
{{- $env := .env | default list }}
{{- $names := list }}
{{- range $env }}{{ $names = append $names .name }}{{ end }}
{{- range .container.env }}{{ if not (has .name $names) }}{{ $env = append $env . }}{{ end }}{{ end }}
{{- $_ := set .container "env" $env }}
{{- end }}
