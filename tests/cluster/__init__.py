"""Workers on clusters. What once went wrong, and the test of its right end:

an extra that replaced the install and could not be resolved      the extra is gone; for `.[ray]` test_extra
`profile=paper` refused on a login node without a GPU             test_submit: a_login_node_needs_no_gpu
a time limit                                                      test_slurm: grid_of_40_runs; faults/test_resume.py: a_signal_leaves
a preemption with 5 s of grace                                    test_slurm: preempted_workers, grid_of_40_runs
one job cancelled while the launcher waits                        test_slurm: cancelled_workers
a cell that fails                                                 test_slurm: a_run_that_fails; test_ray: the same
a wrong partition, a controller that is down                      test_slurm: partition_that_does_not_exist, controller_that_is_down
an owner killed while a launcher waits                            test_slurm: worker_that_is_killed
a finished grid                                                   test_slurm: two_workers_do_a_grid
Ray on a running cluster; no GPU there                            test_ray: node_dies; cluster_that_cannot_do_it
`accelerate launch --cpu` with several processes                  training/test_distributed.py: accelerate_launch_on_a_cpu
two searches on one new storage                                   test_slurm: workers_of_a_search; search/test_workers.py
"""
