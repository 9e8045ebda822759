#!/bin/bash
# Segments many scans on several nodes of a SLURM cluster: sbatch cluster_slurm.sh MODEL SCANS OUTPUT
# Submit it again if it ran out of time: it goes on where it stopped.
#SBATCH --job-name=medquant
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
set -eu
model=$1 scans=$2 output=$3

# The environment with medquantint8[openvino,onnxruntime,cuda,cluster], on a disk that every node mounts.
. "${MEDQUANT_ENVIRONMENT:-$HOME/medquant}/bin/activate"
export RAY_USAGE_STATS_ENABLED=0

nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname -I | awk '{print $1}'):$port

start="ray start --block --disable-usage-stats --num-cpus=$SLURM_CPUS_PER_TASK"
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || start="$start --num-gpus=$SLURM_GPUS_ON_NODE"
srun --overlap --nodes=1 --ntasks=1 -w "$head" $start --head --include-dashboard=false --port="$port" &
sleep 20
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 -w "$node" $start --address="$address" &
done

# Nodes that are slower to join are used as soon as they are there.
status=0
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
    medquant segment "$model" "$scans" --output "$output" --cluster "$address" || status=$?
kill $(jobs -p)
exit $status
